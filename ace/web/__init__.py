"""BROWSER → CONVERSATION. Imports: inference, conversation, weights.

In: what somebody does on the page. Out: a `ChatSession` that has grown, and the page's next view of it. The doors load
on first use: Gradio is an extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {"Studio": "ace.web.actions", "make_app": "ace.web.app"}
__all__ = ["Studio", "make_app"]

if TYPE_CHECKING:
    from ace.web.actions import Studio
    from ace.web.app import make_app


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.web' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
