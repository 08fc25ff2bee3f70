"""`plaudit train`: from preference data and a model to a trained, evaluated, saved reward model."""

import dataclasses
import logging
import shlex
import signal
import sys
from argparse import Namespace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.models.model_config import ModelConfig
    from plaudit.training.config import RewardConfig
    from plaudit.training.trainer import RewardTrainer

__all__ = ["command"]

_USAGE = "plaudit train [CONFIG.yaml] --model_name_or_path MODEL --dataset_name DATA [--option value ...]"


@click.command("train", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def command(options: tuple[str, ...]) -> None:
    """Train a reward model on your preference data."""
    # Here and not above: these imports take seconds, and `plaudit --help` must not wait for them.
    import torch
    from transformers import PrinterCallback

    from plaudit.cli.display import LiveProgress, console, show_log_messages
    from plaudit.data.splits import load_splits
    from plaudit.models.adapters import get_peft_config
    from plaudit.models.quantization import get_quantization_config
    from plaudit.training.preparation import quiet_all_but_the_first
    from plaudit.training.trainer import RewardTrainer

    script, config, model = _parse(options)
    show_log_messages()
    quiet_all_but_the_first()
    _warn_of_idle_options(model)
    resume = _resume_from(config)
    train_dataset, eval_dataset = load_splits(script, config.seed)
    config.model_init_kwargs = _model_init_kwargs(model, config)
    trainer = RewardTrainer(
        model=model.model_name_or_path,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=[LiveProgress()],
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.remove_callback(PrinterCallback)
    if script.ignore_bias_buffers:  # DDP's own list of what it leaves alone
        buffers = trainer.model.named_buffers()
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in buffers if buffer.dtype == torch.bool
        ]
    trainer.dataset_name = script.dataset_name or ", ".join(str(entry["path"]) for entry in script.datasets or ())
    _show_plan(trainer, model)
    trainer.stop_on = (signal.SIGINT, signal.SIGTERM)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except SystemExit:
        _say_how_to_resume(trainer, options)
        trainer.end()
        raise
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        metrics = _evaluate(trainer) if eval_dataset is not None else {}
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a save that is ended is ended when the run is resumed
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        trainer.save_model()
        console.print(f"The evaluation was stopped. The trained model is in [bold]{config.output_dir}[/bold]")
        trainer.end()
        sys.exit(128 + (interrupt.args or (signal.SIGINT,))[0])  # as a shell reports a program that a signal ended
    _show_result(trainer, metrics)
    trainer.save_model()
    if trainer.is_world_process_zero():
        console.print(f"The reward model is in [bold]{config.output_dir}[/bold]")
    trainer.end()


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def _parse(options: tuple[str, ...]) -> "tuple[Any, RewardConfig, ModelConfig]":
    from plaudit.cli.options import OptionParser
    from plaudit.data.script_arguments import ScriptArguments
    from plaudit.models.model_config import ModelConfig
    from plaudit.training.config import RewardConfig

    parser = OptionParser((ScriptArguments, ModelConfig, RewardConfig), usage=_USAGE)
    script, model, config = parser.parse(options, output_dir=_default_output)
    config.disable_tqdm = True  # our own bar instead
    return script, config, model


def _default_output(given: Namespace) -> str:
    if given.model_name_or_path is None:
        raise ConfigError("--model_name_or_path: name the model to start from, a hub id or a folder.")
    return f"{Path(given.model_name_or_path).resolve().name}-Reward"


def _model_init_kwargs(model: "ModelConfig", config: "RewardConfig") -> dict[str, Any]:
    named = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return {name: value for name, value in named.items() if value is not None} | config.load_options


def _warn_of_idle_options(model: "ModelConfig") -> None:
    if model.use_peft:
        return
    changed = [
        f"--{each.name}"
        for each in dataclasses.fields(model)
        if each.name.startswith(("lora_", "use_rslora", "use_dora")) and getattr(model, each.name) != each.default
    ]
    if changed:
        logging.getLogger(__name__).warning("%s without --use_peft: ALL weights train", " ".join(changed))


def _resume_from(config: "RewardConfig") -> str | bool | None:
    from plaudit.checkpoint.integrity import last_complete_checkpoint

    path = str(config.resume_from_checkpoint or "")  # YAML may say `true`
    has_some = last_complete_checkpoint(config.output_dir) is not None
    if path.lower() in ("", "false"):
        if has_some:
            logging.getLogger(__name__).warning(
                "'%s' holds checkpoints of an earlier run; this one starts anew and adds its own.", config.output_dir
            )
        return None
    if path.lower() in ("true", "last"):
        if not has_some:
            raise ConfigError(f"--resume_from_checkpoint {path}: there is no checkpoint in '{config.output_dir}'.")
        return True
    if not Path(path).is_dir():
        raise ConfigError(f"--resume_from_checkpoint: there is no folder '{path}'. Use 'last' for the newest one.")
    return path


def _evaluate(trainer: "RewardTrainer") -> dict[str, float]:
    """The final evaluation, unless training has ended with it."""
    from plaudit.cli.display import console

    state = trainer.state
    last = [entry for entry in state.log_history if entry.get("step") == state.global_step]
    done = {name: value for entry in last for name, value in entry.items() if name.startswith("eval_")}
    if done and not trainer.args.load_best_model_at_end:
        return done
    if trainer.is_world_process_zero():
        console.print("Evaluating ...")
    return trainer.evaluate()


def _show_plan(trainer: "RewardTrainer", model: "ModelConfig") -> None:
    from plaudit.cli.display import show_table

    if not trainer.is_world_process_zero():
        return
    args, parameters = trainer.args, list(trainer.model.parameters())
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters]  # ZeRO-3 holds parts
    total = sum(sizes)
    trained = sum(size for size, parameter in zip(sizes, parameters, strict=True) if parameter.requires_grad)
    precision = "bf16 mixed" if args.bf16 else "fp16 mixed" if args.fp16 else "float32"
    rows = f"{args.per_device_train_batch_size} rows"
    if args.max_tokens_per_batch is not None:
        rows = f"up to {args.max_tokens_per_batch:,} tokens"
    weights = str(trainer.model.dtype).removeprefix("torch.")
    if (bits := 4 * model.load_in_4bit + 8 * model.load_in_8bit) != 0:
        weights = f"{bits} bits and {weights}"
    batch = f"{rows} x {args.gradient_accumulation_steps} accumulated"
    layout = "token forest" if trainer.layout == "forest" else "padded"
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    show_table(
        "What will run",
        [
            ("model", f"{model.model_name_or_path} ({type(trainer.model).__name__})"),
            ("parameters", f"{total:,}, of which {trained:,} train"),
            *((name, _split_line(report)) for name, report in trainer.reports.items()),
            ("batch", f"{batch} x {processes}"),
            ("layout", layout),
            ("device", f"{args.device}, {precision}, weights in {weights}"),
            ("output", str(args.output_dir)),
        ],
    )


def _split_line(report: Any) -> str:
    if report.streaming:
        return "a stream: rows are counted as they come"
    dropped = f"; {report.dropped:,} dropped ({report.causes()})" if report.dropped else "; none dropped"
    return f"{report.kept:,} pairs, {report.tokens:,} tokens{dropped}"


def _say_how_to_resume(trainer: "RewardTrainer", options: tuple[str, ...]) -> None:
    from plaudit.cli.display import console

    if not trainer.is_world_process_zero():
        return
    kept = list(options)
    if "--resume_from_checkpoint" in kept:
        place = kept.index("--resume_from_checkpoint")
        del kept[place : place + 2]
    checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    resume = shlex.join(["plaudit", "train", *kept, "--resume_from_checkpoint", str(checkpoint)])
    console.print(f"Stopped after step {trainer.state.global_step}; saved [bold]{checkpoint}[/bold]. Go on with:")
    console.print(f"  {resume}", soft_wrap=True, markup=False)


def _show_result(trainer: "RewardTrainer", metrics: dict[str, float]) -> None:
    from plaudit.cli.display import show_table
    from plaudit.metrics import wilson_interval

    if not trainer.is_world_process_zero():
        return
    last = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    rows = [("steps", f"{trainer.state.global_step:,}"), ("training loss", f"{last['train_loss']:.4f}")]
    for prefix, report in ((name, report) for name, report in trainer.reports.items() if name != "train"):
        if f"{prefix}_accuracy" not in metrics:
            continue
        accuracy = metrics[f"{prefix}_accuracy"]
        interval = ""
        if not report.streaming:
            low, high = wilson_interval(accuracy, report.kept)
            interval = f" (95% interval {low:.1%} to {high:.1%}, {report.kept:,} pairs)"
        rows.append((f"{prefix} accuracy", f"{accuracy:.1%}{interval}"))
        guessing = " (0.6931 is guessing)" if trainer.args.loss_type == "bradley_terry" else ""
        rows.append((f"{prefix} loss", f"{metrics[f'{prefix}_loss']:.4f}{guessing}"))
        rows.append((f"{prefix} margin", f"{metrics[f'{prefix}_margin']:.3f}"))
    show_table("Result", rows)
