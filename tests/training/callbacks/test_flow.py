"""The flow of training: a log with each checkpoint, the epoch of the sampler, nothing after the last step."""

from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from plaudit.training.callbacks.flow import TrainingFlow, mean_logged_loss


@pytest.fixture
def arguments(tmp_path):
    return lambda **options: TrainingArguments(str(tmp_path), use_cpu=True, **options)


class Sampler:
    """A batch sampler that remembers its epoch."""

    def set_epoch(self, epoch):
        self.epoch = epoch


def flow(sampler=None):
    return TrainingFlow(SimpleNamespace(sampler=sampler))


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
@pytest.mark.parametrize("saves", [False, True])
def test_a_checkpoint_comes_with_a_log(arguments, event, saves):
    control = TrainerControl(should_save=saves)
    getattr(flow(), event)(arguments(), TrainerState(global_step=3, max_steps=9), control)
    assert control.should_log is saves


@pytest.mark.parametrize(("strategy", "logs"), [("best", True), ("steps", False)])
def test_an_evaluation_that_may_lead_to_a_checkpoint_comes_with_a_log(arguments, strategy, logs):
    args = arguments(save_strategy=strategy, eval_strategy="steps", eval_steps=1, metric_for_best_model="loss")
    control = TrainerControl(should_evaluate=True)
    flow().on_step_end(args, TrainerState(global_step=3, max_steps=9), control)
    assert control.should_log is logs


@pytest.mark.parametrize(("strategy", "logs"), [("steps", True), ("epoch", True), ("no", False)])
def test_the_last_step_is_logged_unless_there_is_no_log_at_all(arguments, strategy, logs):
    control = TrainerControl()
    flow().on_step_end(arguments(logging_strategy=strategy), TrainerState(global_step=9, max_steps=9), control)
    assert control.should_log is logs


def test_a_log_that_another_callback_asks_for_stays(arguments):
    control = TrainerControl(should_log=True)
    flow().on_step_end(arguments(), TrainerState(global_step=3, max_steps=9), control)
    assert control.should_log


@pytest.mark.parametrize(("epoch", "expected"), [(None, 0), (0, 0), (1.0, 1), (2.75, 2)])
def test_the_sampler_is_told_the_epoch_that_the_state_is_in(arguments, epoch, expected):
    sampler = Sampler()
    flow(sampler).on_epoch_begin(arguments(), TrainerState(epoch=epoch), TrainerControl())
    assert sampler.epoch == expected


def test_a_run_without_a_sampler_begins_its_epochs(arguments):
    flow().on_epoch_begin(arguments(), TrainerState(epoch=1.0), TrainerControl())


def test_a_stop_that_an_evaluation_has_led_to_is_logged(arguments):
    control = TrainerControl(should_training_stop=True)
    flow().on_epoch_end(arguments(), TrainerState(global_step=5, max_steps=9), control)
    assert control.should_log


def test_the_mean_loss_of_a_run_weighs_each_log_by_its_steps():
    history = [{"loss": 1.0, "step": 2}, {"eval_loss": 9.0, "step": 2}, {"loss": 4.0, "step": 3}]
    assert mean_logged_loss(TrainerState(global_step=3, log_history=history), default=0.0) == pytest.approx(2.0)


@pytest.mark.parametrize("history", [[], [{"loss": 1.0, "step": 2}]])
def test_a_log_that_ends_before_the_last_step_gives_no_mean(history):
    assert mean_logged_loss(TrainerState(global_step=3, log_history=history), default=0.7) == 0.7
