"""Optimisers, from libraries: torch's fused AdamW, Muon and Adafactor, bitsandbytes' 8-bit AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ace.errors import MissingDependencyError
from ace.extras import install_command
from ace.training.config import TrainingRecipe


def make_optimizer(module: nn.Module, recipe: TrainingRecipe, lr_scales: dict[str, float]) -> torch.optim.Optimizer:
    """The recipe's optimiser over all trained parameters; the loop sets the learning rate of every group.

    lr_scales: parameter name prefix → factor. Raises MissingDependencyError for a library that is not installed."""
    groups = parameter_groups(module, recipe.weight_decay, lr_scales)
    if recipe.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=1.0)
    if recipe.optimizer == "muon":
        return MuonWithAdamW(module, recipe, lr_scales)
    settings: dict[str, Any] = {"lr": 1.0, "betas": recipe.betas, "eps": recipe.eps}
    if recipe.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]  (extra `quant`)
        except ImportError:
            raise MissingDependencyError(f"adamw_8bit needs bitsandbytes: {install_command('quant')}") from None
        return AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the blocks, AdamW for everything else, as one optimiser.

    Muon's steps have the size of AdamW's (`match_rms_adamw`), so both take the same learning rate."""

    def __init__(self, module: nn.Module, recipe: TrainingRecipe, lr_scales: dict[str, float]) -> None:
        by_muon, by_adamw = (
            parameter_groups(module, recipe.weight_decay, lr_scales, wanted)
            for wanted in (_is_inner_matrix, lambda name, parameter: not _is_inner_matrix(name, parameter))
        )
        self.optimizers = (
            torch.optim.Muon(by_muon, lr=1.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(by_adamw, lr=1.0, betas=recipe.betas, eps=recipe.eps, fused=True),
        )
        super().__init__([group for optimizer in self.optimizers for group in optimizer.param_groups], {})
        self._share_groups()

    def step(self, closure: None = None) -> None:
        """One step of both."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the states of both."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and ".blocks." in f".{name}"


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    lr_scales: dict[str, float],
    wanted: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True,
) -> list[dict[str, Any]]:
    """Trained and wanted parameters by learning rate factor and decay: vectors (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and wanted(name, parameter):
            scale = next((s for prefix, s in lr_scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((scale, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": ps, "lr_scale": scale, "weight_decay": decay} for (scale, decay), ps in groups.items()]


def set_lr(optimizer: Any, lr: float) -> None:
    """The learning rate of the step to come, for every group by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
