"""Where a model runs."""

import torch

from plaudit.errors import ConfigError

__all__ = ["usable_device"]


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; an accelerator if there is one, else the CPU, for `None`.

    Raises:
        ConfigError: There is none of that name here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or accelerator or "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (AssertionError, RuntimeError) as error:  # the former of a torch without CUDA
        reason = str(error).strip().split("\n")[0]
        here = "cpu" if accelerator is None else f"cpu, {accelerator.type}"
        raise ConfigError(f"device: {str(device)!r} cannot be used here ({reason}). There is: {here}.") from error
    return torch.device(device)
