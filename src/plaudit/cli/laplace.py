"""`plaudit laplace`: fit the posterior of the head of a trained reward model, and save it beside the weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.dataset_options import dataset_options
from plaudit.cli.model_options import model_options

if TYPE_CHECKING:
    from plaudit.evaluation.laplace import LaplaceFit

__all__ = ["command"]


@click.command("laplace")
@click.argument("model")
@click.argument("data")
@dataset_options("Split to fit on.  [default: train, else the only one]")
@model_options
def command(
    model: str, data: str, split: str | None, dataset_config: str | None, dataset_format: str | None, **options: Any
) -> None:
    """Fit a last-layer Laplace approximation of MODEL, a folder, to DATA: the preferences that it was trained on.

    The posterior of the head is written beside the weights, as laplace.safetensors. Every reward then has a standard
    deviation: `RewardModel.from_pretrained(MODEL).score(..., return_std=True)`.
    """
    with display.while_importing():
        from plaudit.checkpoint.laplace_file import LAPLACE_FILE, check_folder_of_one_head
        from plaudit.evaluation.laplace import fit_laplace
        from plaudit.scoring.reward_model import RewardModel

    folder = Path(model).expanduser()
    check_folder_of_one_head(folder)
    display.show_log_messages()
    # An older posterior is left unread: it may be of the head before it was trained on.
    reward_model = RewardModel.from_pretrained(folder, uncertainty=None, **options)
    fit = fit_laplace(reward_model, data, split=split, dataset_config=dataset_config, dataset_format=dataset_format)
    is_replaced = (folder / LAPLACE_FILE).exists()
    fit.posterior.write(folder)
    _show(fit, folder / LAPLACE_FILE, "Replaced" if is_replaced else "Wrote")


def _show(fit: "LaplaceFit", path: Path, verb: str) -> None:
    """Print what was fitted and where it was written."""
    features = len(fit.posterior.head)
    rows = [
        ("data", escape(fit.posterior.measured_on)),
        ("prior precision", f"{fit.posterior.prior_precision:.3g}, where the marginal likelihood is greatest"),
        ("determined by data", f"{fit.well_determined:.1f} of {features} directions of the head"),
    ]
    display.show_table("Posterior of the head", rows)
    display.console.print(f"{verb} {escape(str(path))}; `score(..., return_std=True)` uses it.", soft_wrap=True)
