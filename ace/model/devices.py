"""Where a model computes, which is not where its weights are while they wait; records of tensors moved there."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ace.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

Record = TypeVar("Record")
DEVICES = ("auto", "cpu", "cuda", "mps")


def working_device(module: nn.Module) -> torch.device:
    """The device that accelerate's hooks bring a module to, else the one that its weights are on."""
    import torch

    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def moved(record: Record, device: torch.device) -> Record:
    """A frozen dataclass with every tensor in it on a device, also those in records and tuples inside it."""
    import torch

    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, tuple):
            return tuple(map(one, value))
        return moved(value, device) if is_dataclass(value) and not isinstance(value, type) else value

    return replace(record, **{f.name: one(getattr(record, f.name)) for f in fields(record)})  # type: ignore[type-var]


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
