"""A job on its way through a pipeline that keeps a state of its own per request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ace.conversation.family import State
from ace.conversation.job import Job

S = TypeVar("S", bound=State)


@dataclass(eq=False)
class Running(Generic[S]):
    """job: what is made; state: the pipeline's own."""

    job: Job
    state: S

    @property
    def step_index(self) -> int:
        """Steps done."""
        return self.state.step_index

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return self.state.num_steps

    @property
    def done(self) -> bool:
        """True when there is nothing left but `finish`."""
        return self.state.done
