"""`plaudit train`: from preference data and a model to a trained, evaluated, saved reward model."""

import shlex
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.interrupts import exit_code, sigterm_as_interrupt
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.cli.options import OptionParser
    from plaudit.models.model_config import ModelConfig
    from plaudit.training.trainer import RewardTrainer

__all__ = ["COMMON_OPTIONS", "command"]

_USAGE = "plaudit train [CONFIG.yaml] --model_name_or_path MODEL --dataset_name DATA [--option VALUE ...]"
# Those of transformers' options that most runs set; importing transformers for its own help takes seconds.
COMMON_OPTIONS = {
    "output_dir": "Folder for the model and its checkpoints; by default the model's name with '-Reward'.",
    "num_train_epochs": "Passes over the training rows.",
    "max_steps": "Optimiser steps, instead of passes.",
    "per_device_train_batch_size": "Rows of a batch of one process; see also max_tokens_per_batch.",
    "gradient_accumulation_steps": "Batches of an optimiser step.",
    "lr_scheduler_type": "Course of the learning rate, such as linear, cosine or constant.",
    "warmup_steps": "Steps in which the learning rate rises; below 1, as a fraction of all steps.",
    "eval_strategy": "Evaluation during training: no, steps or epoch.",
    "save_strategy": "Checkpoints during training: no, steps, epoch or best.",
    "save_steps": "Steps between checkpoints; below 1, as a fraction of all steps.",
    "save_total_limit": "Most checkpoints to keep.",
    "resume_from_checkpoint": "Checkpoint to go on from, or 'last'.",
    "seed": "Seed of the order of the rows and of a new head.",
    "report_to": "Receivers of the logs, such as wandb, tensorboard or none.",
    "push_to_hub": "Upload the model to the hub.",
}


@click.command("train", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def command(options: tuple[str, ...]) -> None:
    """Train a reward model on preference data."""
    if {"-h", "--help"} & set(options):
        click.echo(_short_help(), nl=False)
        return
    # Not at the top of the module: these imports take seconds, and `--help` must not wait for them.
    with display.while_importing():
        from plaudit.cli.learning_curve import check_learning_curve, run_learning_curve
        from plaudit.cli.live_progress import LiveProgress
        from plaudit.cli.training_report import check_report, show_grave_findings, write_training_report
        from plaudit.data.splits import load_splits
        from plaudit.training.preparation import quiet_all_but_the_first
        from plaudit.training.recipe import build_trainer, checkpoint_to_resume, final_evaluation

    if "--help_all" in options:
        _parser().print_help()
        return
    script, model, config = _parser().parse(options, output_dir=_default_output)
    config.disable_tqdm = True  # the command shows its own bar
    display.show_log_messages()
    quiet_all_but_the_first()
    resume = checkpoint_to_resume(config)
    if script.report:
        check_report()
    splits = load_splits(script, config.seed)
    trainer = build_trainer(script, model, config, [LiveProgress()], splits)
    if script.learning_curve:
        check_learning_curve(trainer)
    _show_plan(trainer, model)
    if trainer.is_world_process_zero():
        show_grave_findings(*splits)
    trainer.stop_on = (signal.SIGINT, signal.SIGTERM)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except SystemExit:
        _show_how_to_resume(trainer, options)
        trainer.end()
        raise
    try:
        with sigterm_as_interrupt():
            metrics = final_evaluation(trainer)
    except KeyboardInterrupt as interrupt:
        trainer.save_model()
        where = f"The trained model is in [bold]{escape(config.output_dir)}[/bold]"
        display.console.print(f"The evaluation was stopped. {where}", soft_wrap=True)
        trainer.end()
        sys.exit(exit_code(interrupt))
    _show_result(trainer, metrics)
    trainer.save_model()  # a signal ends a save at once: it is complete or not there
    if trainer.is_world_process_zero():
        display.console.print(f"The reward model is in [bold]{escape(config.output_dir)}[/bold]", soft_wrap=True)
    if script.learning_curve:
        try:
            with sigterm_as_interrupt() as received:
                run_learning_curve(trainer, script, model, received)
        except KeyboardInterrupt as interrupt:
            if trainer.is_world_process_zero():
                display.console.print("The learning curve was stopped, and has no file. The model above is complete.")
            trainer.end()
            sys.exit(exit_code(interrupt))
    trainer.end()
    if script.report and trainer.is_world_process_zero():
        write_training_report(config.output_dir, trainer.state.log_history, splits)


def _short_help() -> str:
    from plaudit.cli.option_help import format_options
    from plaudit.data.script_arguments import ScriptArguments
    from plaudit.models.model_config import ModelConfig
    from plaudit.training.reward_options import RewardOptions

    formatter = click.HelpFormatter(max_width=100)
    formatter.write_usage("plaudit train", _USAGE.removeprefix("plaudit train "))
    formatter.write_paragraph()
    formatter.write_text("Train a reward model on preference data.")
    formatter.write_paragraph()
    formatter.write_text("Options may also be lines of a YAML file, such as `learning_rate: 1e-5`; flags win.")
    for title, group in (("Data", ScriptArguments), ("Model", ModelConfig), ("Training", RewardOptions)):
        format_options(formatter, title, group)
    with formatter.section("Training, from transformers"):
        formatter.write_dl([(f"--{name}", text) for name, text in COMMON_OPTIONS.items()])
    with formatter.section("More"):
        formatter.write_dl([("--help_all", "List all options, those of transformers.TrainingArguments included.")])
    return formatter.getvalue()


def _parser() -> "OptionParser":
    from plaudit.cli.options import OptionParser
    from plaudit.data.script_arguments import ScriptArguments
    from plaudit.models.model_config import ModelConfig
    from plaudit.training.config import RewardConfig

    return OptionParser((ScriptArguments, ModelConfig, RewardConfig), usage=_USAGE)


def _default_output(given: Namespace) -> str:
    if given.model_name_or_path is None:
        raise ConfigError("--model_name_or_path: name the model to start from, a hub id or a folder.")
    return f"{Path(given.model_name_or_path).resolve().name}-Reward"


def _show_plan(trainer: "RewardTrainer", model: "ModelConfig") -> None:
    from plaudit.models.member_heads import num_members

    if not trainer.is_world_process_zero():
        return
    args, parameters = trainer.args, list(trainer.model.parameters())
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters]  # ZeRO-3 holds shards
    trained = sum(size for size, parameter in zip(sizes, parameters, strict=True) if parameter.requires_grad)
    precision = "bf16 mixed" if args.bf16 else "fp16 mixed" if args.fp16 else "float32"
    rows = f"{args.per_device_train_batch_size} rows"
    if args.max_tokens_per_batch is not None:
        rows = f"up to {args.max_tokens_per_batch:,} tokens"
    weights = str(trainer.model.dtype).removeprefix("torch.")
    if (bits := 4 * model.load_in_4bit + 8 * model.load_in_8bit) != 0:
        weights = f"{bits} bits and {weights}"
    members = num_members(trainer.bare_model)
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    display.show_table(
        "What will run",
        [
            ("model", escape(f"{model.model_name_or_path} ({type(trainer.model).__name__})")),
            ("parameters", f"{sum(sizes):,}, of which {trained:,} train"),
            *([("heads", f"{members}; their mean is the reward")] if members else []),
            *((name, _describe_split(report)) for name, report in trainer.reports.items()),
            ("batch", f"{rows} x {args.gradient_accumulation_steps} accumulated x {processes}"),
            ("layout", "token forest" if trainer.layout == "forest" else "padded"),
            ("device", f"{args.device}, {precision}, weights in {weights}"),
            ("output", escape(args.output_dir)),
        ],
    )


def _describe_split(report: Any) -> str:
    if report.streaming:
        return "a stream, whose rows are counted as they are read"
    dropped = f"; {report.dropped:,} dropped ({report.causes()})" if report.dropped else "; none dropped"
    return f"{report.kept:,} pairs, {report.tokens:,} tokens{dropped}"


def _show_how_to_resume(trainer: "RewardTrainer", options: tuple[str, ...]) -> None:
    if not trainer.is_world_process_zero():
        return
    checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    resume = shlex.join(["plaudit", "train", *options, "--resume_from_checkpoint", str(checkpoint)])
    stop = f"Stopped after step {trainer.state.global_step}; saved [bold]{escape(str(checkpoint))}[/bold]. Go on with:"
    display.console.print(stop, soft_wrap=True)
    display.console.print(f"  {resume}", soft_wrap=True, markup=False)


def _show_result(trainer: "RewardTrainer", metrics: dict[str, float]) -> None:
    if not trainer.is_world_process_zero():
        return
    last = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    rows = [("steps", f"{trainer.state.global_step:,}"), ("training loss", f"{last['train_loss']:.4f}")]
    guessing = " (0.6931 is guessing)" if trainer.args.loss_type == "bradley_terry" else ""
    for name, report in trainer.reports.items():
        if f"{name}_accuracy" in metrics:
            low, high = (metrics[f"{name}_accuracy_{end}"] for end in ("low", "high"))
            interval = f" (95% interval {low:.1%} to {high:.1%}, {report.kept:,} pairs)"
            rows += [
                (f"{name} accuracy", f"{metrics[f'{name}_accuracy']:.1%}{interval}"),
                (f"{name} loss", f"{metrics[f'{name}_loss']:.4f}{guessing}"),
                (f"{name} margin", f"{metrics[f'{name}_margin']:.3f}"),
            ]
    display.show_table("Result", rows)
