"""A served tiny model, and the same model in process to compare with."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from running_server import running

from plaudit import RewardModel
from plaudit.serving.application import create_application
from plaudit.serving.scoring_service import ScoringService
from plaudit.serving.served_model import ServedModel
from plaudit.serving.server_limits import ServerLimits


@dataclass
class Served:
    """A running server: its URL, its service, and a model of its own with the same weights."""

    url: str
    service: ScoringService
    reward_model: RewardModel


@pytest.fixture(scope="session")
def rendering_pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def new_service(model_folder, rendering_pool):
    """A function that makes a service of models by name; all of them are closed after the test."""
    services = []

    def make(models=None, *, truncates=False, **limits):
        service = ScoringService(ServerLimits(**limits), truncates=truncates)
        services.append(service)
        models = {"tiny": RewardModel.from_pretrained(model_folder)} if models is None else models
        service.serve(
            ServedModel(
                name, model, pool=rendering_pool, truncates=truncates, on_step=service.record_step
            )
            for name, model in models.items()
        )  # fmt: skip
        return service

    yield make
    for service in services:
        service.close()


@pytest.fixture(scope="session")
def server(model_folder, rendering_pool):
    """A server of one tiny model, with all dialects and no keys."""
    service = ScoringService(ServerLimits())
    service.serve(
        [
            ServedModel(
                "tiny", RewardModel.from_pretrained(model_folder), pool=rendering_pool, on_step=service.record_step
            )
        ]
    )
    with running(create_application(service, allowed_hosts=["127.0.0.1"])) as url:
        yield Served(url, service, RewardModel.from_pretrained(model_folder))
    service.close()
