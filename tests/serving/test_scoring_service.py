import asyncio

import pytest

from plaudit.serving.scoring_request import ModelInfo, ScoringRequest, Text
from plaudit.serving.scoring_service import ScoringService
from plaudit.serving.server_limits import ServerLimits
from plaudit.serving.serving_errors import ServingError


class Model:
    """A model that answers as many requests as `in_use` says, and perhaps hangs."""

    queued_items = queued_tokens = 0
    max_tokens_per_batch = 4096

    def __init__(self, version, in_use=0, fault=None):
        self.info = ModelInfo("policy", version, created=0, dtype="float32", max_length=None)
        self.in_use, self.fault, self.failed, self.closed = in_use, fault, False, asyncio.Event()

    def find_fault(self):
        return self.fault

    def fail_all(self, message):
        self.failed = True

    def close(self):
        self.closed.set()


def test_a_replaced_model_that_hangs_ends_the_server_as_one_that_is_served_does():
    async def swap():
        service = ScoringService(ServerLimits())
        old = Model("first", in_use=1)
        service.serve([old])
        service.replace(Model("second"))
        assert service.find_dead_model() is None
        old.fault = "a step of policy has been running for too long"
        assert service.find_dead_model() == old.fault
        service.die(old.fault)
        assert old.failed
        assert not old.closed.is_set()
        old.in_use = 0
        await asyncio.wait_for(old.closed.wait(), 10)
        await asyncio.sleep(0)
        assert service.find_dead_model() is None

    asyncio.run(swap())


def test_the_metrics_name_the_weights_that_are_served_and_no_earlier_ones():
    async def swap():
        service = ScoringService(ServerLimits())
        service.serve([Model("first")])
        for version in ("second", "second", "third"):
            service.replace(Model(version))
        lines = [line for line in service.measure().decode().splitlines() if line.startswith("plaudit_weights{")]
        assert lines == ['plaudit_weights{model="policy",weight_version="third"} 1.0']

    asyncio.run(swap())


def test_a_request_of_too_many_items_is_refused_with_the_limit():
    service = ScoringService(ServerLimits(max_items=1_000))
    service.serve([Model("first")])
    request = ScoringRequest([Text("a")] * 1_001, ["items"] * 1_001)
    with pytest.raises(ServingError) as caught:
        asyncio.run(service.score(request, client="a", size=1, seconds=1))
    assert caught.value.failure == "invalid"
    assert caught.value.message == "expected at most 1,000 items in a request, got more: send several requests."
