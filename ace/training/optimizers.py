"""Optimisers, from libraries: torch's fused AdamW, bitsandbytes' 8-bit AdamW, torch's Adafactor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ace.errors import MissingDependencyError
from ace.training.config import Run


def make_optimizer(module: nn.Module, recipe: Run, lr_scales: dict[str, float]) -> torch.optim.Optimizer:
    """The recipe's optimiser over all trained parameters; the loop sets the learning rate of every group.

    lr_scales: parameter name prefix → factor. Raises MissingDependencyError for a library that is not installed."""
    groups = parameter_groups(module, recipe.weight_decay, lr_scales)
    if recipe.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=1.0)
    settings: dict[str, Any] = {"lr": 1.0, "betas": recipe.betas, "eps": recipe.eps}
    if recipe.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]  (extra `quant`)
        except ImportError:
            raise MissingDependencyError("adamw_8bit needs bitsandbytes: pip install 'ace-allround[quant]'") from None
        return AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def parameter_groups(module: nn.Module, weight_decay: float, lr_scales: dict[str, float]) -> list[dict[str, Any]]:
    """Trained parameters by learning rate factor and by decay: vectors (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale = next((s for prefix, s in lr_scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((scale, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": ps, "lr_scale": scale, "weight_decay": decay} for (scale, decay), ps in groups.items()]


def set_lr(optimizer: Any, lr: float) -> None:
    """The learning rate of the step to come, for every group by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
