"""The files of a model from the hub, or from its cache on this machine.

huggingface_hub does the work: it resumes a broken connection, keeps whole files and obeys `HF_HUB_OFFLINE`. What it
does not do (since 2.0) is go on with a file that a killed process left half done; `_finish_partial_files` does.
Imports nothing heavy.

Not here: what is done with the files (`convert.py`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from httpx2 import HTTPError  # what huggingface_hub speaks; its own errors are among them
from huggingface_hub import constants
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url, http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from yaml import YAMLError

from ace.errors import ModelNotFoundError

PATTERN = "models/*"
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
    return fetch_files(hub_id, [PATTERN])


def fetch_files(
    hub_id: str, patterns: Sequence[str], ignored: Sequence[str] = (), *, cached_only: bool = False
) -> Path:
    """The folder with those files of a repository that match one of `patterns` and none of `ignored`.

    cached_only: nothing is downloaded, and the folder may lack some. Raises ModelNotFoundError, in one line."""
    try:
        if not (constants.HF_HUB_OFFLINE or cached_only):
            _finish_partial_files(hub_id, patterns)
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=list(patterns), ignore_patterns=list(ignored), local_files_only=cached_only
        )
        return Path(folder)
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelNotFoundError(f"the hub has no {hub_id} (or it needs a login): name a local copy") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = "it is not fetched here: make an image with it once" if cached_only else "the hub cannot be reached"
        advice = "name a local copy" if cached_only else "go online, or name a local copy"
        raise ModelNotFoundError(f"{hub_id} is not in the hub's cache and {reason}: {advice}") from None
    except (HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelNotFoundError(f"{hub_id} was not fetched ({reason}): try again, it goes on from there") from None


def licence_of(folder: Path) -> str:
    """What a repository's card says of its licence, in one line of printable text."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        text = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
        facts = huggingface_hub.ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):
        facts = {}
    named = [facts.get(key) for key in ("license_name", "license", "license_link")]
    words = [str(value) for value in named if value and value != "other"]
    return " ".join(", ".join(words).split())[:200] or "none is stated: ask its authors"


def _finish_partial_files(hub_id: str, patterns: Sequence[str]) -> None:
    """Fetch the missing ends of files that an interrupted download left in the hub's cache.

    The start is trusted if the whole has the announced size and, where the hub announces it, the SHA-256; else it is
    thrown away, and the file is fetched anew afterwards. Files in xet storage are left to its own cache."""
    name = repo_folder_name(repo_id=hub_id, repo_type="model")
    blobs = Path(constants.HF_HUB_CACHE) / name / "blobs"
    started = sorted(blobs.glob("*.incomplete"), key=lambda path: path.stat().st_size)
    if not started:
        return
    headers = build_hf_headers()
    for file in huggingface_hub.list_repo_files(hub_id):
        if not any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns):
            continue
        url = hf_hub_url(hub_id, file)
        facts = get_hf_file_metadata(url, headers=headers)
        etag, size = facts.etag, facts.size
        parts = [path for path in started if path.name.startswith(f"{etag}.")]
        if not parts or not etag or not size or facts.xet_file_data is not None or (blobs / etag).exists():
            continue
        with WeakFileLock(Path(constants.HF_HUB_CACHE) / ".locks" / name / f"{etag}.lock"):
            part = parts[-1]
            have = part.stat().st_size if part.exists() else 0
            if not 0 < have < size:
                continue
            with part.open("ab") as target:
                http_get(facts.location or url, target, resume_size=have, headers=headers, expected_size=size)
            if part.stat().st_size == size and _is_content_of(part, etag):
                os.replace(part, blobs / etag)
            else:
                part.unlink()


def _is_content_of(path: Path, etag: str) -> bool:
    """Whether a file's hash is the one in its etag; true where the etag is of another kind."""
    if not re.fullmatch("[0-9a-f]{64}", etag):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == etag
