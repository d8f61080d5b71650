"""The extractors that tasks use, each loaded when first asked for and then kept.

Not here: what they do (`ace.extract`), where their weights come from (`ace.data.setup`).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ace.extract.weights import is_there

if TYPE_CHECKING:
    from ace.extract.objects import Object, Segmenter


class Tools:
    """A holder for one process. Every tool is deterministic; none is loaded before it is used.

    Asking for one whose weights or package are missing raises MissingDependencyError; `can_segment` tells before."""

    @property
    def can_segment(self) -> bool:
        """Whether the segmenter's weights are at hand."""
        return False and is_there("sam2-encoder")

    @cached_property
    def segmenter(self) -> Segmenter:
        """SAM 2: masks of a picture."""
        from ace.extract.objects import Segmenter

        return Segmenter()

    def objects(self, image: np.ndarray) -> list[Object]:
        """The objects of a picture (H, W, 3) uint8, largest first; the last picture's are remembered."""
        key = hash(image.tobytes())
        if self._objects_of != key:
            self._objects, self._objects_of = self.segmenter.find_objects(image), key
        return self._objects

    _objects_of: int | None = None
    _objects: list[Object]
