"""Clips that clients asked for: uploads, how each stands, and its files until it is deleted.

Each lies in a folder of its own below a temporary one, under an id that cannot be guessed; names from outside never
become part of a path. What is done is kept until the client deletes it, makes more than `MOST` or the server stops.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ace.conversation.job import Made
from ace.conversation.recipe import FileRef
from ace.errors import BusyError, InputError
from ace.server.images import Upload
from ace.server.service import Accepted, NotFoundError

MOST = 32  # clips of one client
FORMATS = {"mp4": "MP4", "mkv": "MKV"}
MIME = {"mp4": "video/mp4", "mkv": "video/x-matroska"}


@dataclass(eq=False)
class StoredVideo:
    """One clip of a client. files: role -> (path, as recipes name it); status: "running", "done", "failed" or
    "cancelled"; made: without its frames once it is written."""

    id: str
    client: str
    folder: Path
    created: float = field(default_factory=time.time)
    files: dict[str, tuple[Path, FileRef]] = field(default_factory=dict)
    accepted: Accepted | None = None
    status: str = "running"
    message: str | None = None
    details: dict[str, object] = field(default_factory=dict)

    def path(self, output_format: str) -> Path:
        """Where the finished clip lies."""
        return self.folder / f"clip.{output_format}"

    def keep(self, made: list[Made]) -> list[Made]:
        """Write what was made, in both formats, each with its recipe."""
        (one,) = made
        for suffix, name in FORMATS.items():
            self.path(suffix).write_bytes(one.medium.encode(one.content, name, one.recipe))
        one = one.medium.as_written(one, self.path("mp4").read_bytes())
        height, width = next(iter(one.content.frames)).shape[:2]
        self.details = {
            "size": f"{width}x{height}",
            "frames": len(one.content.frames),
            "fps": float(one.content.fps),
            "seconds": float(len(one.content.frames) / one.content.fps),
            "seed": str(one.recipe.seed),
            "steps": one.recipe.num_inference_steps,
            "notes": list(one.notes),
        }
        return made

    def ended(self, status: str, message: str | None) -> None:
        """How it ended; told by the service."""
        self.status, self.message = status, message


class VideoStore:
    """All clips of a server."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="ace-videos-"))
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        self._lock = threading.Lock()
        self._videos: dict[str, StoredVideo] = {}

    def create(self, client: str, uploads: Mapping[str, Upload]) -> StoredVideo:
        """A new clip with its uploaded files written. Raises BusyError if the client has too many, InputError."""
        with self._lock:
            own = [video for video in self._videos.values() if video.client == client]
            done = [video for video in own if video.status != "running"]
            if len(own) - len(done) >= MOST:
                raise BusyError(f"you have {MOST} clips in the making: wait for one", 30.0)
            for old in done[: max(0, len(own) + 1 - MOST)]:
                self._forget(old)
            video = StoredVideo(f"video_{secrets.token_hex(12)}", client, Path())
            video.folder = self._root / video.id
            self._videos[video.id] = video
        try:
            video.folder.mkdir()
            for role, upload in uploads.items():
                path = video.folder / f"{role}.upload"
                path.write_bytes(upload.data)
                video.files[role] = (path, upload.ref)
        except OSError:
            self.delete(video)
            raise InputError("the files cannot be stored: send smaller ones") from None
        return video

    def find(self, client: str, video_id: str) -> StoredVideo:
        """A client's own clip. Raises NotFoundError."""
        with self._lock:
            video = self._videos.get(video_id)
        if video is None or video.client != client:
            raise NotFoundError("you have no video with this id")
        return video

    def of(self, client: str) -> list[StoredVideo]:
        """A client's clips, the newest first."""
        with self._lock:
            own = [video for video in self._videos.values() if video.client == client]
        return sorted(own, key=lambda video: -video.created)

    def delete(self, video: StoredVideo) -> None:
        """Forget a clip and remove its files."""
        with self._lock:
            self._forget(video)

    def _forget(self, video: StoredVideo) -> None:
        self._videos.pop(video.id, None)
        shutil.rmtree(video.folder, ignore_errors=True)
