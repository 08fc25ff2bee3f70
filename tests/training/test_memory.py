"""What does not fit into memory: found before the first step, or run again in smaller pieces."""

import re

import pytest
import torch
from peft import LoraConfig

from plaudit import DataCollatorForPreference, RewardTrainer
from plaudit.errors import ConfigError, TrainingError
from plaudit.training import forest

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
FIGURES = ("loss", "accuracy", "margin", "mean_reward", "chosen_reward", "reward_ties", "num_tokens", "grad_norm")
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


def groups():
    ranks = [[1, 0, 2, 1], [1, 0], [0, 2, 1], [3, 0, 0, 1, 2], [0, 1], [2, 1, 0], [1, 0], [0, 0, 1]]
    return [
        {"prompt": f"Is it {n}?", "completions": REPLIES[: len(each)], "ranks": each, "weight": 1.0 + n / 4}
        for n, each in enumerate(ranks)
    ]


def annotated(rows):
    return [row | {"margin": n / 8, "label": 1 - n / 12, "weight": 1.0 + n / 4} for n, row in enumerate(rows[:8])]


def with_ties(rows):
    return [row | {"tie": n % 3 == 0} for n, row in enumerate(rows[:8])]


CASES = {
    "pairs": lambda rows: {"train_dataset": annotated(rows)},
    "groups": lambda rows: {"train_dataset": groups()},
    "rankings": lambda rows: {"train_dataset": groups(), "loss_type": "plackett_luce", "group_weighting": "comparison"},
    "pairs as rankings": lambda rows: {"train_dataset": annotated(rows), "loss_type": "plackett_luce"},
    "ties": lambda rows: {"train_dataset": with_ties(rows), "loss_type": "ties"},
    "adapter": lambda rows: {"train_dataset": annotated(rows), "peft_config": LoraConfig()},
}


def parameters_of(trainer):
    named = dict(trainer.model.named_parameters()) | dict(trainer.objective.named_parameters())
    return {name: parameter.detach().clone() for name, parameter in named.items()}


def compare_runs(make_trainer, limit, *, backward=False, **options):
    """A run short of memory and one with enough: the same weights and the same log."""
    whole, short = (make_trainer(**{"max_steps": 2} | SGD | options) for _ in range(2))
    memory = Memory(short, limit, backward=backward)
    short._layout_is_compared = True  # which runs rows without a gradient
    for trainer in (whole, short):
        trainer.train()
    first, second = parameters_of(whole), parameters_of(short)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-5, atol=2e-6, msg=name)
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, short)]
    for entry, expected in zip(*logs, strict=True):
        assert {name: entry[name] for name in FIGURES} == pytest.approx(
            {name: expected[name] for name in FIGURES}, rel=2e-5, abs=1e-6
        )
    return memory


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_short_of_memory_is_the_step_with_enough(make_trainer, text_rows, case, backward):
    memory = compare_runs(make_trainer, 60, backward=backward, **CASES[case](text_rows))
    assert memory.failures >= 2


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("layout", ["forest", "padded"])
@pytest.mark.parametrize("limit", [30, 45, 75])
def test_whichever_micro_batch_fails_the_whole_step_is_run_again(make_trainer, text_rows, layout, limit, backward):
    """From all of them failing, down to one row at a time, to one that fails after another's gradient came in."""
    rows = [row | {"chosen": row["chosen"] * (1 + 2 * (n >= 4))} for n, row in enumerate(annotated(text_rows))]
    rows = [row | {"chosen": row["chosen"][: 12 * (1 + (n >= 4))]} for n, row in enumerate(rows)]
    limit = limit if layout == "forest" else 2 * limit
    memory = compare_runs(
        make_trainer, limit, backward=backward, train_dataset=rows, gradient_accumulation_steps=2,
        batch_layout=layout, max_steps=1,
    )  # fmt: skip
    assert memory.failures >= 1
    assert min(memory.tried) <= limit < max(memory.tried)


def test_three_rows_of_which_two_do_not_fit_together(make_trainer, text_rows):
    memory = compare_runs(make_trainer, 25, train_dataset=text_rows[:3], max_steps=1)
    assert memory.tried == [59, 17, 42, 17, 21, 21]


def test_the_step_is_run_again_from_the_random_state_it_began_with(make_trainer, text_rows, monkeypatch):
    states = []

    class Watched(RewardTrainer):
        def _micro_step(self, *args):
            states.append(torch.get_rng_state())
            return super()._micro_step(*args)

    trainer = make_trainer(
        trainer_class=Watched, gradient_accumulation_steps=2, max_steps=1, train_dataset=text_rows[:8]
    )
    memory = Memory(trainer, 40)
    memory.limit = 1000
    trainer.model.model.embed_tokens.register_forward_hook(lambda *_: torch.rand(1) and None)  # as dropout would draw

    def then_less(module, args, kwargs):
        memory.limit = 1000 if len(states) == 1 else 40

    trainer.model.register_forward_pre_hook(then_less, with_kwargs=True, prepend=True)
    trainer._layout_is_compared = True
    trainer.train()
    # first, second (fails), and the first again: from the state before the first, not from that before the second
    assert torch.equal(states[2], states[0])
    assert not torch.equal(states[1], states[0])


def test_one_row_too_large_says_what_to_do(make_trainer):
    trainer = make_trainer(max_steps=1)
    memory = Memory(trainer, 10)
    trainer._layout_is_compared = True
    with pytest.raises(ConfigError, match="one row alone does not fit into memory. Lower `max_length`, turn on"):
        trainer.train()
    assert memory.failures == 3  # four rows, two, one


def test_rows_that_are_not_finite_are_named_once_where_the_step_was_run_again(make_trainer, text_rows):
    trainer = make_trainer(train_dataset=text_rows, gradient_accumulation_steps=2, max_steps=1, batch_layout="padded")
    memory = Memory(trainer, 60)
    trainer.model.score.register_forward_hook(lambda _, __, rewards: rewards * float("nan"))
    with pytest.raises(TrainingError) as raised:
        trainer.train()
    assert memory.failures >= 2
    assert str(raised.value).count("\n  row") == 5
    assert "\n  and 3 more" in str(raised.value)  # of 8, and not those of the runs that were given up as well


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


def test_several_processes_stop_with_a_clear_error(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=1)
    Memory(trainer, 10)
    trainer._layout_is_compared = True
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(ConfigError, match="a batch of 109 tokens does not fit into memory. Lower `max_tokens_per_bat"):
        trainer.train()


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
        trainer._layout_is_compared = True
        trainer.train()
        tried, *steps = memory.tried
        most.append(max(steps))
        assert len(steps) == trainer.state.global_step
        # An epoch that needs fewer batches than another has its largest cut.
        assert tried == most[0] if epochs == 1 else tried >= max(most)
        assert tried <= budget


def test_trying_leaves_no_trace(make_trainer, monkeypatch):
    options = {"max_tokens_per_batch": 60, "max_steps": 4, "train_sampling_strategy": "random", **SGD}
    with_try, without = make_trainer(**options), make_trainer(**options)
    monkeypatch.setattr(without, "_try_largest_batch", lambda *_: None)
    memory = Memory(with_try, 1000)
    with_try.model.model.embed_tokens.register_forward_hook(lambda *_: torch.rand(1) and None)
    with_try._layout_is_compared = without._layout_is_compared = True
    seen = []
    tried = with_try._try_largest_batch

    def look(model, *args):
        before = torch.get_rng_state(), parameters_of(with_try)
        tried(model, *args)
        after = torch.get_rng_state(), parameters_of(with_try)
        assert torch.equal(before[0], after[0])
        assert all(torch.equal(weight, after[1][name]) for name, weight in before[1].items())
        assert all(parameter.grad is None for parameter in with_try.model.parameters())
        assert with_try.meter.mark() == 0
        seen.append(len(memory.tried))

    monkeypatch.setattr(with_try, "_try_largest_batch", look)
    for trainer in (with_try, without):
        trainer.train()
    assert seen == [1]
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
    trainer._layout_is_compared = True
    with pytest.raises(ConfigError, match=rf"max_tokens_per_batch={budget} does not fit .* \d+ fits. Set it") as error:
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in parameters_of(trainer).items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.meter.mark() == 0
    assert torch.equal(torch.get_rng_state(), state)
    fits = int(re.search(r"(\d+) fits", str(error.value)).group(1))
    assert fits > limit / 2 or fits == trainer.sampler.planner.sizes.max()
    small = make_trainer(max_tokens_per_batch=fits, num_train_epochs=1, **options)
    memory = Memory(small, limit, backward=backward)
    small._layout_is_compared = True
    small.train()
    assert memory.failures == 0


def test_where_not_even_one_row_fits_no_budget_is_named(make_trainer):
    trainer = make_trainer(max_tokens_per_batch=100, max_steps=1)
    Memory(trainer, 10)
    trainer._layout_is_compared = True
    with pytest.raises(ConfigError, match="Not even one row fits. Turn on `gradient_checkpointing`, or lower `max_len"):
        trainer.train()


def test_the_largest_batch_is_tried_as_it_will_run(make_trainer, monkeypatch):
    asked = []
    monkeypatch.setattr(
        forest, "offload_activations", lambda model, enabled: asked.append(enabled) or torch.enable_grad()
    )
    trainer = make_trainer(max_tokens_per_batch=60, max_steps=2, activation_offloading=True)
    trainer.train()
    assert asked == [True] * 3  # the try, and two steps
