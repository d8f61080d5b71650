"""Import only what a request uses: diffusers and transformers import whatever optional package is installed.

peft (LoRA), torchao (8-bit weights) and scipy take about two fifths of what `ace edit` spends on imports, and a plain
edit uses none of them. `without` says, in the way that Python's own `import` documents
(`None` in `sys.modules`), that they are not here while the libraries look for them, and forgets it afterwards: whoever
imports such a package later gets it. The libraries remember what they found, so this is for a process of our own that
makes one kind of request and ends: the command line, not Python's users, the server or the studio.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ace.conversation import Family, Loading

OPTIONAL = ("peft", "torchao", "scipy", "bitsandbytes", "gguf", "onnxruntime")
_own_process = False


def own_process() -> None:
    """This process is the `ace` command and nobody else's."""
    global _own_process
    _own_process = True


def unused(family: Family, loading: Loading) -> tuple[str, ...]:
    """The optional packages that a model loaded so does without; none in a process that is not our own."""
    from ace.families.ace import AceFamily

    if not _own_process or not isinstance(family, AceFamily):
        return ()
    more = loading.adapters or loading.quantize or loading.refine or loading.compile or loading.fast
    return () if more or family.model.is_quantized else OPTIONAL


@contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """Within, `import` finds none of these packages, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is what `import` takes for "not here"
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, ...) is None:
                del sys.modules[name]
