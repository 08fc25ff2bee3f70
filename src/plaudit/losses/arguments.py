"""What the losses share: how sure a verdict is, and the check of shapes."""

import torch

__all__ = ["smooth_label", "check_shapes"]


def smooth_label(label: torch.Tensor | None, label_smoothing: float) -> torch.Tensor | float:
    """Probability that the first is better, seen through annotators who err: `q = (1 - eps) p + eps (1 - p)`.

    Args:
        label: Probability p that the first is better, any shape; 1 where `None`. Its range is not checked: looking at
            values would hold up the device.
        label_smoothing: Probability eps that a verdict is flipped.

    Returns:
        q, in the shape of the label; a number where there is none.

    Raises:
        ValueError: `label_smoothing` is not a probability.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"label_smoothing is the probability that a verdict is flipped: expected a number between 0 and 1, "
            f"got {label_smoothing}"
        )
    if label is None:
        return 1 - label_smoothing
    return (1 - label_smoothing) * label + label_smoothing * (1 - label)


def check_shapes(size: str, **tensors: torch.Tensor | None) -> None:
    """Refuse tensors that would silently broadcast, as [C, 1] against [C] does into [C, C].

    Args:
        size: The letter of their common length, for the message.
        tensors: The tensors by name; those that are `None` are left out.

    Raises:
        ValueError: They are not one-dimensional, or of different lengths.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected one-dimensional tensors of one shape [{size}], got {shapes}")
