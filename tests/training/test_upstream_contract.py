"""The methods of transformers' `Trainer` that `RewardTrainer` overrides exist there, with the parameters it assumes.

An upgrade that renames one would silently take a guard away: the override would never be called again. The same holds
for the attribute of torch's fused optimisers by which a step is left out.
"""

import inspect

import pytest
import torch
from torch import nn
from transformers import Trainer

from plaudit import RewardTrainer

PUBLIC = {
    "add_callback": ["callback"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "create_model_card": [
        "language",
        "license",
        "tags",
        "model_name",
        "finetuned_from",
        "tasks",
        "dataset_tags",
        "dataset",
        "dataset_args",
    ],
    "create_optimizer": ["model"],
    "end": [],
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "get_eval_dataloader": ["eval_dataset"],
    "get_test_dataloader": ["test_dataset"],
    "get_train_dataloader": [],
    "log": ["logs", "start_time"],
    "predict": ["test_dataset", "ignore_keys", "metric_key_prefix"],
    "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
    "save_model": ["output_dir", "_internal_call"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
}
PRIVATE = {
    "_get_grad_norm": ["model", "grad_norm"],
    "_init_training_state": [
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ],
}
# Private names of the Trainer that are read or called, without being overridden: a method, and an attribute.
USED = {
    "_save": "def _save(self, output_dir: str | None = None, state_dict: dict | None = None)",
    "_train_batch_size": "self._train_batch_size = ",
}


def overridden():
    """Names of the methods of `Trainer` that `RewardTrainer` or a class between them defines anew."""
    own = RewardTrainer.__mro__[: RewardTrainer.__mro__.index(Trainer)]
    names = {name for each in own for name, value in vars(each).items() if inspect.isfunction(value)}
    return {name for name in names if name in vars(Trainer) and not name.startswith("__")}


def test_every_override_is_listed_here():
    assert overridden() == PUBLIC.keys() | PRIVATE.keys()


@pytest.mark.parametrize("name", sorted(PUBLIC | PRIVATE))
def test_the_method_takes_the_parameters_that_the_override_assumes(name):
    parameters = list(inspect.signature(getattr(Trainer, name)).parameters)
    assert parameters[1:] == (PUBLIC | PRIVATE)[name]


@pytest.mark.parametrize("name", sorted(USED))
def test_a_private_name_that_is_used_without_an_override_is_there(name):
    assert USED[name] in inspect.getsource(Trainer)


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_a_fused_optimiser_leaves_a_step_out_where_its_found_inf_is_1(optimizer_class):
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = optimizer_class([weight], lr=0.1, fused=True)
    for found, expected in ((0.0, 0.9), (1.0, 0.9)):
        weight.grad = torch.tensor([1.0])
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        assert weight.item() == pytest.approx(expected, abs=0.01)
    assert all(each["step"] == 1 for each in optimizer.state.values() if "step" in each)
