"""Addresses of weights → files on this machine: paths, hub ids, `hf://owner/repo@file`, `ms://owner/repo@file`.

`ms://` goes through a folder of copies (`ACE_MODELSCOPE_MIRROR`) or the optional modelscope client.

Not here: which files a model has (`plus/sources.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ace.errors import ModelNotFoundError
from ace.plus.models import BASE_HUB_ID, BASE_VARIABLE

MIRROR_VARIABLE = "ACE_MODELSCOPE_MIRROR"

# ModelScope's copies of what is on the Hugging Face hub
COUNTERPARTS = {
    "iic/ACE_Plus": "ali-vilab/ACE_Plus",
    "AI-ModelScope/FLUX.1-Fill-dev": BASE_HUB_ID,
    "black-forest-labs/FLUX.1-Fill-dev": BASE_HUB_ID,
}
_URI = re.compile(r"^(hf|ms)://([\w.-]+/[\w.-]+)(?:@(.+))?$")
_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")


def locate(source: str, what: str, patterns: Sequence[str] | None = None) -> Path:
    """A path, a hub id, `hf://…` or `ms://…`, with variables as in `${NAME}/file` → a local file or folder.

    patterns: which files of a whole repository are needed. Raises ModelNotFoundError, in one line."""
    text = os.path.expandvars(source.strip())
    unset = re.search(r"\$\{(\w+)\}", text)
    if unset:
        raise ModelNotFoundError(f"{what}: the variable {unset[1]} in {source!r} is not set: set it, or name a file")
    uri = _URI.match(text)
    path = Path(text).expanduser()
    if uri is None and path.exists():
        return path
    if uri is None and _HUB_ID.match(text) and path.suffix not in (".safetensors", ".gguf", ".pt", ".pth", ".ckpt"):
        uri = _URI.match(f"hf://{text}")
    if uri is None:
        short = _without_double_suffix(text)
        if short != text and Path(short).expanduser().exists():
            return Path(short).expanduser()
        raise ModelNotFoundError(
            f"{what}: {source!r} is neither a file here nor an address: write a path, hf://owner/repo@file or "
            "ms://owner/repo@file"
        )
    kind, repository, file = uri.groups()
    file = None if file is None else _without_double_suffix(file)
    if kind == "ms":
        return _from_modelscope(repository, file, what, patterns)
    return _from_hub(repository, file, what, patterns)


def _without_double_suffix(name: str) -> str:
    """The published instructions write one address with its suffix twice."""
    return re.sub(r"(\.safetensors)+$", ".safetensors", name)


def _from_hub(repository: str, file: str | None, what: str, patterns: Sequence[str] | None) -> Path:
    import huggingface_hub
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    name = repository if file is None else f"{repository}/{file}"
    variable = f" or point {BASE_VARIABLE} at a local copy" if repository == BASE_HUB_ID else " or name a local copy"
    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns) if patterns else None))
    except GatedRepoError:
        raise ModelNotFoundError(
            f"{what}: {repository} is gated: accept its licence on the hub and run `hf auth login`,{variable}"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelNotFoundError(
            f"{what}: {name} is not in the hub's cache and the hub cannot be reached: go online,{variable}"
        ) from None
    except (RepositoryNotFoundError, HFValidationError, EntryNotFoundError):
        raise ModelNotFoundError(f"{what}: the hub has no {name} (or it needs a login): check it,{variable}") from None
    except (HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelNotFoundError(
            f"{what}: {name} was not fetched ({reason}): try again, it goes on from there"
        ) from None


def _from_modelscope(repository: str, file: str | None, what: str, patterns: Sequence[str] | None) -> Path:
    """From the folder of copies, else through modelscope's client; without either, say where else it is."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror:
        path = Path(mirror).expanduser() / repository / (file or "")
        if path.exists():
            return path
    counterpart = COUNTERPARTS.get(repository)
    other = f"hf://{counterpart}" + (f"@{file}" if file else "") if counterpart else "a copy on disk"
    name = f"ms://{repository}" + (f"@{file}" if file else "")
    try:
        import modelscope  # type: ignore[import]

        if file is not None:
            return Path(modelscope.model_file_download(repository, file))
        return Path(modelscope.snapshot_download(repository, allow_patterns=list(patterns) if patterns else None))
    except ImportError as error:
        missing = (error.name or "modelscope").replace("_", "-")
        raise ModelNotFoundError(
            f"{what}: {name} needs the modelscope package or a folder of copies ({MIRROR_VARIABLE}): "
            f"pip install {missing}, or use {other}"
        ) from None
    except _modelscope_errors() as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelNotFoundError(f"{what}: {name} was not fetched ({reason}): try again, or use {other}") from None


def _modelscope_errors() -> tuple[type[Exception], ...]:
    """What its client raises: Python's own, and since 1.40 errors of a package of theirs."""
    try:
        from modelscope_hub.errors import HubError  # type: ignore[import]
    except ImportError:
        return (OSError, ValueError, RuntimeError)
    return (OSError, ValueError, RuntimeError, HubError)
