"""BROWSER → SERVER. Imports: server, extract, lesson, conversation, errors.

In: what somebody does on the page (`page/`, static files of our own). Out: the server's routes are called; there is no
session logic here. The doors load on first use: FastAPI is an extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {"StartLink": "ace.web.app", "make_app": "ace.web.app", "studio_settings": "ace.web.app"}
__all__ = ["StartLink", "make_app", "studio_settings"]

if TYPE_CHECKING:
    from ace.web.app import StartLink, make_app, studio_settings


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.web' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
