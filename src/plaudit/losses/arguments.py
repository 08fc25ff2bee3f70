"""Checks and transformations of arguments that the losses have in common."""

import torch

__all__ = ["check_shapes", "smooth_label"]


def smooth_label(label: torch.Tensor | None, label_smoothing: float) -> torch.Tensor | float:
    """Compute the probability that an annotator who errs prefers the winner: `q = (1 - eps) p + eps (1 - p)`.

    Args:
        label: Probability p in [0, 1] that the winner is the better one, any shape; 1 where `None`. Its range is not
            checked, since reading values would make the device wait.
        label_smoothing: Probability eps that the annotator prefers the other one.

    Returns:
        q, in the shape of the label; a number where the label is `None`.

    Raises:
        ValueError: `label_smoothing` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from plaudit.losses.arguments import smooth_label
        >>> smooth_label(torch.tensor([1.0, 0.75, 0.5]), 0.5)
        tensor([0.5000, 0.5000, 0.5000])
        >>> smooth_label(None, 0.25)
        0.75
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            "label_smoothing is the probability that an annotator errs: expected a number between 0 and 1, "
            f"got {label_smoothing}"
        )
    if label is None:
        return 1 - label_smoothing
    return (1 - label_smoothing) * label + label_smoothing * (1 - label)


def check_shapes(size: str, **tensors: torch.Tensor | None) -> None:
    """Raise if tensors would broadcast, as [C, 1] against [C] does into [C, C], or have different lengths.

    Args:
        size: Letter of the common length, for the message.
        tensors: The tensors by name; `None` is left out.

    Raises:
        ValueError: A tensor is not one-dimensional, or the lengths differ.

    Example:
        >>> import torch
        >>> from plaudit.losses.arguments import check_shapes
        >>> check_shapes("C", winner=torch.zeros(3), loser=torch.zeros(3, 1))
        Traceback (most recent call last):
        ValueError: expected one-dimensional tensors of one shape [C], got {'winner': (3,), 'loser': (3, 1)}
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected one-dimensional tensors of one shape [{size}], got {shapes}")
