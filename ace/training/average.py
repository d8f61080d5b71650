"""Averages of weights over the steps of training (EMA), which are what a finished run hands on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ace.errors import CheckpointError


class Average:
    """Exponential moving average of parameters, with a short memory at the start (decay grows to its full value).

    Without decay the parameters stand for themselves and nothing is kept. Sharded parameters have sharded averages; a
    checkpoint holds them whole."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        # a small step would vanish in bfloat16
        self.values = [p.detach().float().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self, parameters: list[torch.nn.Parameter]) -> None:
        """Move towards the parameters' values of now."""
        self.updates += 1
        if not self.values:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach().float() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: list[torch.nn.Parameter]) -> None:
        """Write the averages into the parameters."""
        for parameter, value in zip(parameters, self.values, strict=bool(self.values)):
            parameter.copy_(value)

    @contextmanager
    def shown_in(self, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        """The parameters are the averages for a while, for a look at what those draw."""
        kept = [p.detach().clone() for p in parameters] if self.values else []
        self.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=bool(kept)):
                    parameter.copy_(value)

    def whole(self) -> list[torch.Tensor]:
        """The averages on the CPU, put together where they are sharded. Called by all processes."""
        return [getattr(value, "full_tensor", lambda value=value: value)().cpu() for value in self.values]

    @torch.no_grad()
    def restore(self, values: list[torch.Tensor], updates: int) -> None:
        """Go on from whole averages. Raises CheckpointError if they are of other parameters."""
        if [tuple(v.shape) for v in values] != [tuple(v.shape) for v in self.values]:
            raise CheckpointError(
                f"the checkpoint has averages of {len(values)} weights, the recipe trains {len(self.values)}: "
                "train with the recipe that it was begun with"
            )
        self.updates = updates
        for value, saved in zip(self.values, values, strict=True):
            if hasattr(value, "device_mesh"):
                saved = torch.distributed.tensor.distribute_tensor(
                    saved.to(value.device), value.device_mesh, value.placements
                )
            value.copy_(saved)
