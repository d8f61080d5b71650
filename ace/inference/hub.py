"""The files of a published model from the hub, or from its cache on this machine.

huggingface_hub does the work: interrupted downloads go on where they stopped, `HF_HUB_OFFLINE` is obeyed. Imports
nothing heavy.

Not here: what is done with the files (`convert.py`).
"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from httpx2 import HTTPError  # what huggingface_hub speaks; its own errors are among them
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ace.errors import ModelNotFoundError

HUB_IDS = {
    "ace-0.6b-512": "scepter-studio/ACE-0.6B-512px",
    "ace-0.6b-1024": "scepter-studio/ACE-0.6B-1024px",
}


def fetch(hub_id: str) -> Path:
    """The folder with a published model's files.

    Raises ModelNotFoundError for an id that is none of `HUB_IDS`, or files that are neither cached nor to be had."""
    known = HUB_IDS.values()
    if hub_id not in known:
        raise ModelNotFoundError(f"{hub_id} is neither a folder nor a known model: use a folder, {' or '.join(known)}")
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=["models/*"]))
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelNotFoundError(f"the hub has no {hub_id} (or it needs a login): name a local copy") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelNotFoundError(
            f"{hub_id} is not in the hub's cache and the hub cannot be reached: go online, or name a local copy"
        ) from None
    except (HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelNotFoundError(f"{hub_id} was not fetched ({reason}): try again, it goes on from there") from None
