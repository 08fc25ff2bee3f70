"""The figures of the training log, added up on the device and read once at each log."""

import math

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

    def mark(self) -> int:
        """A point to go back to."""
        return len(self._rows)

    def rewind(self, mark: int) -> None:
        """Forget what was counted since `mark`."""
        del self._rows[mark:]

    @torch.no_grad()
    def add(
        self, first: torch.Tensor, second: torch.Tensor, tokens: torch.Tensor, verdict: torch.Tensor | None = None
    ) -> None:
        """Count one micro-batch.

        Args:
            first: Rewards of the sequences named first in a comparison, shape [C].
            second: Rewards of the others, shape [C].
            tokens: The number of real tokens, shape [].
            verdict: 1 where the first is the better one, -1 where the second is, 0 where neither (not counted), shape
                [C]; all 1 if `None`.
        """
        first, second = first.detach().float(), second.detach().float()
        verdict = torch.ones_like(first) if verdict is None else verdict.to(first.dtype)
        counts = verdict.abs()
        winner, loser = torch.where(verdict < 0, second, first), torch.where(verdict < 0, first, second)
        ties = ((winner == loser) * counts).sum()
        sums = (
            counts.sum(), ((winner > loser) * counts).sum() + 0.5 * ties, ties,
            ((winner - loser) * counts).sum(), (winner * counts).sum(), (loser * counts).sum(), tokens,
        )  # fmt: skip
        inside = [torch.where(counts > 0, side, torch.full_like(side, math.inf)) for side in (winner, loser)]
        outside = [torch.where(counts > 0, side, torch.full_like(side, -math.inf)) for side in (winner, loser)]
        extremes = (*(side.min() for side in inside), *(side.max() for side in outside))
        self._rows.append(torch.stack([figure.to(first.dtype) for figure in (*sums, *extremes)]))

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
        if not count:  # ties alone
            return {"num_tokens": total["tokens"]}
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
        # A batch of ties alone has no extremes.
        return figures | {name: values[~values.isinf()].mean().item() for name, values in (least | greatest).items()}
