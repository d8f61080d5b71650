"""Whether a result may be shown: the unsafe-content network (`ace/extract/safety.py`), where its weights are.

`moderation: auto`, the default as in OpenAI's API, looks at every result, and at previews, before anybody sees them;
`low` does not. Without the weights, and where the operator switched it off, answers say that nothing was checked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from ace.errors import CheckpointError, InputError, MissingDependencyError

OnPreview = Callable[[int, int, Image.Image], None]  # number of the image, number of its preview, preview
Checked = Literal["checked", "not checked"]


class ModerationError(InputError):
    """A result that is not given out."""


class Moderation:
    """Looks at results. max_unsafe: probability above which one is refused; 1 = none ever is, nothing is looked at."""

    def __init__(self, max_unsafe: float) -> None:
        self.max_unsafe = max_unsafe
        self._lock = threading.Lock()
        self._net = None
        self._missing = max_unsafe >= 1

    @property
    def works(self) -> bool:
        """Whether the network is here; loads it at the first call."""
        with self._lock:
            if self._net is None and not self._missing:
                from ace.extract.safety import SafetyNet

                try:
                    self._net = SafetyNet()
                except (MissingDependencyError, CheckpointError):
                    self._missing = True
            return self._net is not None

    def allows(self, images: Sequence[Image.Image]) -> bool:
        """Whether all images may be shown; true where nothing can be checked."""
        if not self.works or self._net is None:
            return True
        unsafe = self._net([np.asarray(image.convert("RGB")) for image in images])
        return float(unsafe.max(initial=0)) <= self.max_unsafe

    def check(self, images: Sequence[Image.Image]) -> None:
        """Raise ModerationError unless all images may be shown."""
        if not self.allows(images):
            raise ModerationError("the result was rejected by the safety system: ask for something else")

    def only_allowed(self, show: OnPreview | None) -> OnPreview | None:
        """The same function for previews, which is not told of those that may not be shown."""
        if show is None:
            return None

        def show_allowed(number: int, preview: int, image: Image.Image) -> None:
            if self.allows([image]):
                show(number, preview, image)

        return show_allowed
