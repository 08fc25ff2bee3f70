"""The notice of models that load: entered around the weights of each, by whichever way they are loaded."""

from contextlib import contextmanager, nullcontext

import pytest

from plaudit import RewardModel
from plaudit.models.loading_notice import show_loading


@pytest.fixture
def noticed():
    """The models whose weights were loaded, each when it was."""
    names = []

    @contextmanager
    def notice(name):
        yield
        names.append(name)

    show_loading(notice)
    yield names
    show_loading(nullcontext)


def test_scoring_loads_within_the_notice(noticed, model_folder):
    RewardModel.from_pretrained(model_folder)
    assert noticed == [str(model_folder)]


def test_so_does_training_and_each_member_of_an_ensemble(noticed, make_trainer, model_folder, ensemble_folder):
    make_trainer(model=str(model_folder))
    RewardModel.from_pretrained([model_folder, ensemble_folder])
    assert noticed == [str(model_folder), str(model_folder), str(ensemble_folder)]
