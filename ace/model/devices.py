"""Where a model computes, which is not where its weights are while they wait (diffusers' offloading)."""

from __future__ import annotations

import torch
from torch import nn


def working_device(module: nn.Module) -> torch.device:
    """The device that accelerate's hooks bring a module to, else the one that its weights are on."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device
