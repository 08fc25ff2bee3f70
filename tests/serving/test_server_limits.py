import pytest

from plaudit.errors import ConfigError
from plaudit.serving.server_limits import ServerLimits


def test_the_defaults_are_valid():
    assert ServerLimits().max_body_bytes == 64 * 1024**2


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_items": 0},
        {"max_items": 1.5},
        {"max_items": True},
        {"header_seconds": -1},
        {"header_seconds": float("nan")},
        {"body_seconds": float("inf")},
        {"max_json_depth": 200},
    ],
)
def test_a_bound_that_cannot_work_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServerLimits(**wrong)


def test_the_queue_must_hold_the_largest_body():
    with pytest.raises(ConfigError, match="max_queued_bytes"):
        ServerLimits(max_body_bytes=2, max_queued_bytes=1)
