"""The files of a clip: a video, or a folder of frames. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ace.files import hash_file

STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder, in order of name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in STILLS and path.is_file())


def hash_clip(path: Path) -> str:
    """SHA-256 of a file, or over the names and contents of a folder's frames."""
    if not path.is_dir():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in frame_files(path):
        digest.update(f"{file.name}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()
