"""HTTP → IMAGE. Imports: conversation, conditions, model, lesson, errors.

In: requests as OpenAI's image API has them, and conversations of our own. Out: images with their recipes. The doors
load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {
    "Engine": "ace.server.engine",
    "Limits": "ace.server.settings",
    "ServerSettings": "ace.server.settings",
    "create_app": "ace.server.app",
    "serve": "ace.server.run",
}
__all__ = ["Engine", "Limits", "ServerSettings", "create_app", "serve"]

if TYPE_CHECKING:
    from ace.server.app import create_app
    from ace.server.engine import Engine
    from ace.server.run import serve
    from ace.server.settings import Limits, ServerSettings


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.server' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
