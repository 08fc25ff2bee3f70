"""Batches that do not fit into memory: found before the first step, or an error that says what to change."""

import re

import pytest
import torch
from transformers import TrainerCallback

from plaudit import DataCollatorForPreference, RewardTrainer
from plaudit.errors import ConfigError
from plaudit.training.callbacks.largest_batch import TryLargestBatch
from plaudit.training.dataloaders import token_costs

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
REPLIES = [" Yes", " No, it is", " Yes, the sky is blue", " Thank you", " sorry"]
LONG = "The quick brown fox jumps over the lazy dog. " * 4


class Memory:
    """Fails as a device does on a batch of more than `limit` tokens, in the forward or on the way back."""

    def __init__(self, trainer, limit, *, backward=False):
        self.limit, self.backward, self.tried, self.failures = limit, backward, [], 0
        base = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
        base.register_forward_pre_hook(self.forward, with_kwargs=True)
        base.model.layers[0].register_forward_hook(self.after)

    def forward(self, module, args, kwargs):
        self.tokens = kwargs["input_ids"].numel()
        if module.training:
            self.tried.append(self.tokens)
        if not self.backward:
            self.fail()

    def after(self, module, args, output):
        tokens = self.tokens
        if self.backward and output.requires_grad:
            output.register_hook(lambda gradient: self.fail() if tokens > self.limit else None)

    def fail(self):
        if self.tokens > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def parameters_of(trainer):
    named = dict(trainer.model.named_parameters()) | dict(trainer.objective.named_parameters())
    return {name: parameter.detach().clone() for name, parameter in named.items()}


# Out of memory at a step


def test_a_step_that_does_not_fit_says_what_to_lower(make_trainer):
    trainer = make_trainer(max_steps=1)
    Memory(trainer, 10)
    trainer.layout_is_confirmed = True
    with pytest.raises(ConfigError, match="a batch of 109 tokens does not fit into memory. Lower `max_tokens_per_bat"):
        trainer.train()


def test_a_smaller_batch_size_is_found_where_batches_cannot_be_cut(make_trainer):
    trainer = make_trainer(
        data_collator=DataCollatorForPreference(0),
        auto_find_batch_size=True,
        per_device_train_batch_size=8,
        max_steps=2,
    )
    memory = Memory(trainer, 100)
    assert trainer.train().global_step == 2
    assert max(memory.tried[-2:]) <= memory.limit < memory.tried[0]


def test_a_loss_of_ones_own_stops_with_a_clear_error(make_trainer):
    class OwnLoss(RewardTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    trainer = make_trainer(trainer_class=OwnLoss, max_steps=1)
    Memory(trainer, 10)
    with pytest.raises(ConfigError, match="tokens does not fit into memory. Lower"):
        trainer.train()


# The largest batch, before the first step

SHARING = {
    "train_dataset": [
        {"prompt": f"{n % 2} {LONG}", "chosen": REPLIES[n % 5] * (1 + n % 2), "rejected": f" No {n}"} for n in range(12)
    ],
    "group_by_prompt": True,
}


@pytest.mark.parametrize(("budget", "options"), [(60, {}), (220, SHARING)])
def test_the_largest_batch_of_all_epochs_is_tried_before_the_first_step(make_trainer, budget, options):
    most = []
    for epochs in (1, 3):
        trainer = make_trainer(
            max_tokens_per_batch=budget, num_train_epochs=epochs, train_sampling_strategy="random", **options
        )
        memory = Memory(trainer, 1000)
        trainer.layout_is_confirmed = True
        trainer.train()
        tried, *steps = memory.tried
        most.append(max(steps))
        assert len(steps) == trainer.state.global_step
        # An epoch that needs fewer batches than another has its largest cut.
        assert tried == most[0] if epochs == 1 else tried >= max(most)
        assert tried <= budget


class Look(TrainerCallback):
    """Looks at the start of training, after the trial, for what it may have left."""

    def __init__(self, trainer):
        self.trainer, self.before = trainer, parameters_of(trainer)

    def on_train_begin(self, args, state, control, **_):
        assert all(torch.equal(weight, self.before[name]) for name, weight in parameters_of(self.trainer).items())
        assert all(parameter.grad is None for parameter in self.trainer.model.parameters())


def test_trying_leaves_no_trace(make_trainer):
    options = {"max_tokens_per_batch": 60, "max_steps": 4, "train_sampling_strategy": "random", **SGD}
    with_try, without = make_trainer(**options), make_trainer(**options)
    without.remove_callback(TryLargestBatch)
    memory = Memory(with_try, 1000)
    with_try.model.model.embed_tokens.register_forward_hook(lambda *_: torch.rand(1) and None)
    with_try.layout_is_confirmed = without.layout_is_confirmed = True
    for trainer in (with_try, without):
        trainer.add_callback(Look(trainer))
    for trainer in (with_try, without):
        trainer.train()
    assert len(memory.tried) == 1 + with_try.state.global_step
    first, second = parameters_of(with_try), parameters_of(without)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (with_try, without)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("budget", "limit", "options"),
    [(100, 60, {}), (1000, 40, {}), (60, 33, {}), (100, 26, {}), (600, 200, SHARING), (600, 160, SHARING)],
)
def test_a_budget_that_does_not_fit_is_refused_with_one_that_does(make_trainer, budget, limit, options, backward):
    trainer = make_trainer(max_tokens_per_batch=budget, num_train_epochs=1, **options)
    before, state = parameters_of(trainer), torch.get_rng_state()
    Memory(trainer, limit, backward=backward)
    trainer.layout_is_confirmed = True
    with pytest.raises(ConfigError, match=rf"max_tokens_per_batch={budget} does not fit .* \d+ fits. Set it") as error:
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in parameters_of(trainer).items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    fits = int(re.search(r"(\d+) fits", str(error.value)).group(1))
    assert fits > limit / 2 or fits == token_costs(trainer.train_dataset, trainer.layout).max()
    small = make_trainer(max_tokens_per_batch=fits, num_train_epochs=1, **options)
    memory = Memory(small, limit, backward=backward)
    small.layout_is_confirmed = True
    small.train()
    assert memory.failures == 0


def test_where_not_even_one_row_fits_no_budget_is_named(make_trainer):
    trainer = make_trainer(max_tokens_per_batch=100, max_steps=1)
    Memory(trainer, 10)
    trainer.layout_is_confirmed = True
    with pytest.raises(ConfigError, match="Not even one row fits. Turn on `gradient_checkpointing`, or lower `max_len"):
        trainer.train()


def test_the_largest_batch_is_tried_as_it_will_run(make_trainer):
    contexts = []

    class Watched(RewardTrainer):
        def activation_offloading(self):
            contexts.append(self.args.activation_offloading)
            return super().activation_offloading()

    trainer = make_trainer(trainer_class=Watched, max_tokens_per_batch=60, max_steps=2, activation_offloading=True)
    trainer.train()
    assert contexts == [True] * 3  # the trial, and two steps
