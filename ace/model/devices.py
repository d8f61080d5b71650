"""Where a model computes, which is not where its weights are while they wait (diffusers' offloading)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ace.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

DEVICES = ("auto", "cpu", "cuda", "mps")


def working_device(module: nn.Module) -> torch.device:
    """The device that accelerate's hooks bring a module to, else the one that its weights are on."""
    import torch

    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def find_device(device: str = "auto") -> str:
    """ "cpu", "cuda" or "mps"; "auto" takes a GPU if there is one. Raises ConfigError for one that is not there."""
    if device not in DEVICES:
        raise ConfigError(f"device {device!r}: use one of {', '.join(DEVICES)}")
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise ConfigError(f"torch sees no {device} device here: use --device cpu (`ace doctor` says what is installed)")
    return device
