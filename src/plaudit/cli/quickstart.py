"""`plaudit quickstart`: train, evaluate and use a small reward model on built-in data."""

import shutil
import sys
from pathlib import Path

import click

from plaudit.cli import display

__all__ = ["command"]

_NEXT = """
Next, on your own preferences (rows with prompt, chosen and rejected; docs/walkthrough.md goes on from there):
{activate}
  plaudit train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name my-pairs.jsonl --eval_fraction 0.1
  plaudit train --help

and in Python:

  from plaudit import RewardModel
  model = RewardModel.from_pretrained("{output}")
  model.rank([{{"role": "user", "content": "What is the capital of Japan?"}}], ["It is Lima.", "It is Tokyo."])"""


@click.command("quickstart")
@click.option("--seed", default=0, show_default=True, help="Seed of the data, of the initial weights and of the order.")
@click.option("--output_dir", default="quickstart-reward-model", show_default=True, help="Folder to save the model in.")
def command(seed: int, output_dir: str) -> None:
    """Train, evaluate and use a small reward model on built-in data: 90 seconds, no network, no GPU."""
    with display.while_importing():
        from plaudit.cli.live_progress import LiveProgress
        from plaudit.quickstart.demonstration import run_quickstart

        display.show_log_messages()
    display.console.print(
        "Drawing preferences between responses whose true reward is known, and training a small decoder on them from "
        "scratch."
    )
    result = run_quickstart(seed, output_dir, callbacks=[LiveProgress()])
    display.show_table(
        f"On {result.pairs:,} held-out pairs, after {result.seconds:.0f} seconds",
        [
            ("accuracy", f"{result.accuracy:.1%} (95% interval {result.interval[0]:.1%} to {result.interval[1]:.1%})"),
            ("ceiling", f"{result.ceiling:.1%}, the accuracy of the true reward: people disagree"),
            ("of the ceiling", f"{result.share_of_ceiling:.0%}, counted from chance"),
            ("a bag of words", f"{result.bag_of_words:.1%}, for comparison"),
            ("the longer one wins", f"{result.longer_wins:.1%}, for comparison"),
            ("rank correlation", f"{result.correlation:.2f} of learnt and true reward"),
        ],
    )
    display.show_table(
        f"Saved, loaded again from {output_dir}, and asked: {result.prompt}",
        [(response, f"{reward:+.2f}") for response, reward in result.rewards.items()],
    )
    if result.report is not None:
        display.console.print(f"\nA page about it, with pictures: [bold]{result.report.path}[/bold]", soft_wrap=True)
    activate = "" if shutil.which("plaudit") else f"\n  . {Path(sys.executable).with_name('activate')}"
    display.console.print(_NEXT.format(output=output_dir, activate=activate), markup=False, soft_wrap=True)
