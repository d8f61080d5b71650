"""How to get an optional part of this package, as it works where it runs. Imports: errors.

The package may be a checkout, a folder that was installed, or a release; `pip` may be another environment's.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAME = "ace-allround"


@functools.lru_cache(maxsize=64)
def install_command(*extras: str) -> str:
    """The command that installs extras of this package, for messages: `pip install -e '.[train]'` in a checkout."""
    wanted = ",".join(extras)
    folder, editable = _installed_from()
    if folder is None:
        return f"{_pip()} install '{NAME}[{wanted}]'"
    command = f"{_pip()} install {'-e ' if editable else ''}'.[{wanted}]'"
    return command if folder == Path.cwd() else f"{command} (in the folder that ace was installed from)"


def _installed_from() -> tuple[Path | None, bool]:
    """The folder that this package runs or was installed from, None = an index; and whether changes there count."""
    here = Path(__file__).resolve().parents[1]
    if (here / "pyproject.toml").is_file():
        return here, True
    try:
        origin = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None, False
    address = urlsplit(str(origin.get("url", "")))
    if address.scheme != "file" or not Path(unquote(address.path)).is_dir():
        return None, False
    return Path(unquote(address.path)), bool(origin.get("dir_info", {}).get("editable"))


def _pip() -> str:
    """What calls the pip of this Python."""
    own, found = Path(sys.executable).parent, shutil.which("pip")
    if found and Path(found).parent == own:
        return "pip"
    if (own / "pip").exists() and own.is_relative_to(Path.cwd()):
        return str((own / "pip").relative_to(Path.cwd()))
    return "python -m pip"
