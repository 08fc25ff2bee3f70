"""The figures of the training log, added up on the device and read once at each log."""

import torch
from accelerate import Accelerator

__all__ = ["RewardMeter"]


class RewardMeter:
    """Collects rewards of micro-batches without waiting for the device, and reduces them over all processes.

    Means are weighted by comparisons. Least and greatest rewards are those of each batch over all processes, averaged
    over the logging interval, as TRL's users know them.
    """

    _SUMS = ("comparisons", "correct", "ties", "margin", "chosen", "rejected", "tokens")
    _LEAST = ("min_chosen_reward", "min_rejected_reward")
    _GREATEST = ("max_chosen_reward", "max_rejected_reward")

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []  # one row of figures a micro-batch

    @torch.no_grad()
    def add(self, winner: torch.Tensor, loser: torch.Tensor, tokens: torch.Tensor) -> None:
        """Count one micro-batch: rewards [C] of winners and losers, and its number of real tokens."""
        winner, loser = winner.detach().float(), loser.detach().float()
        ties = (winner == loser).sum()
        sums = (
            winner.new_tensor(len(winner)), (winner > loser).sum() + 0.5 * ties, ties,
            (winner - loser).sum(), winner.sum(), loser.sum(), tokens,
        )  # fmt: skip
        extremes = (winner.min(), loser.min(), winner.max(), loser.max())
        self._rows.append(torch.stack([figure.to(winner.dtype) for figure in (*sums, *extremes)]))

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """The interval's figures over all processes, each of which must call this; then start a new interval."""
        if not self._rows:
            return {}
        rows = torch.stack(self._rows)  # [batches, figures]
        self._rows = []
        rows = accelerator.gather(rows).view(-1, *rows.shape).cpu().double()  # [processes, batches, figures]
        names = (*self._SUMS, *self._LEAST, *self._GREATEST)
        columns = dict(zip(names, rows.unbind(-1), strict=True))  # each [processes, batches]
        total = {name: columns[name].sum().item() for name in self._SUMS}
        count = total["comparisons"]
        figures = {
            "accuracy": total["correct"] / count,
            "margin": total["margin"] / count,
            "mean_reward": (total["chosen"] + total["rejected"]) / (2 * count),
            "chosen_reward": total["chosen"] / count,
            "rejected_reward": total["rejected"] / count,
            "reward_ties": total["ties"],
            "num_tokens": total["tokens"],
        }
        least = {name: columns[name].amin(0) for name in self._LEAST}  # [batches], over processes
        greatest = {name: columns[name].amax(0) for name in self._GREATEST}
        least["min_reward"] = torch.minimum(*least.values())
        greatest["max_reward"] = torch.maximum(*greatest.values())
        return figures | {name: values.mean().item() for name, values in (least | greatest).items()}
