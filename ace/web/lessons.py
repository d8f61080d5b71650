"""Teaching in the studio: pairs → a process of its own that runs `ace teach` → an adapter beside the others.

What a lesson does is in its folder (`ace/lesson.py`); here are the processes that this studio started, and what those
said that ended before they wrote anything. They have a low priority, so that the studio stays answered; when it ends,
they stop and keep what was learnt.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile

from ace.conditions.images import open_image
from ace.errors import ConfigError
from ace.lesson import PREVIEW, Lesson, check_name, instruction_of, read_lesson
from ace.server.front import Front, TheFront
from ace.server.service import NotFoundError, Opened

_MOST_PAIRS = 200
_FIELDS = ("name", "instruction", "steps", "session", "nodes")
_NICE = 10 if sys.platform != "win32" else psutil.BELOW_NORMAL_PRIORITY_CLASS
_END_S = 20.0  # that lessons have to write their adapters when the studio ends
Format = Literal["peft", "comfyui"]
FILES: dict[Format, str] = {"peft": "adapter_model.safetensors", "comfyui": "comfyui.safetensors"}


@dataclass
class _Running:
    """A lesson's process. said: where its words go."""

    process: subprocess.Popen
    said: Path


class Lessons:
    """The lessons of one studio, in a folder of adapters."""

    def __init__(self, folder: Path | None, model: str | None) -> None:
        self.folder, self.model = folder or Path("adapters"), model
        self._lock = threading.Lock()
        self._started: dict[str, _Running] = {}

    def begin(self, name: str, instruction: str, pairs: Path, preview: Path | None, steps: int | None) -> None:
        """Teach what the pictures in `pairs`/before and `pairs`/after show, a folder of `room_for`."""
        home = self.folder / name
        with self._lock:
            self._check_free(name)
            said = pairs / "said"
            command = [sys.executable, "-m", "ace", "teach", str(pairs / "before"), str(pairs / "after")]
            command += ["--name", name, "--say", instruction, "--output", str(home), "--quiet"]
            command += ["--model", self.model] if self.model else []
            command += ["--preview", str(preview)] if preview else []
            command += ["--steps", str(steps)] if steps else []
            with said.open("wb") as file:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            with contextlib.suppress(psutil.Error, OSError):
                psutil.Process(process.pid).nice(_NICE)
            self._started[name] = _Running(process, said)

    def all(self) -> list[dict[str, Any]]:
        """What is taught here and what there is, as plain JSON."""
        found: dict[str, dict[str, Any]] = {}
        if self.folder.is_dir():
            for home in sorted(self.folder.iterdir()):
                adapter = next((home / file for file in FILES.values() if (home / file).is_file()), None)
                lesson = read_lesson(home)
                if home.is_dir() and (adapter or lesson) and not home.name.startswith("."):
                    found[home.name] = _entry(home.name, lesson, adapter is not None)
        with self._lock:
            for name, started in list(self._started.items()):
                if started.process.poll() is None:
                    found[name] = {**found.get(name, _entry(name, None, False)), "status": "running"}
                elif started.process.returncode and name not in found:
                    found[name] = _entry(name, None, False) | {"status": "failed", "message": _last_words(started.said)}
        return sorted(found.values(), key=lambda one: one["name"])

    def stop(self, name: str) -> None:
        """End a lesson after its step; what was learnt is kept. Raises NotFoundError."""
        with self._lock:
            if not self._is_running(name):
                raise NotFoundError(f"{name} is not being taught")
            self._started[name].process.send_signal(signal.SIGTERM)

    def delete(self, name: str) -> None:
        """Delete an adapter, or forget a lesson that failed. Raises NotFoundError, and ConfigError while it runs."""
        with self._lock:
            if self._is_running(name):
                raise ConfigError(f"{name} is being taught: stop it first")
            known = self._started.pop(name, None)
        home = self.folder / name
        if home.is_dir() and not home.is_symlink():
            shutil.rmtree(home)
        elif known is None:
            raise NotFoundError(f"there is no adapter {name}")
        self._drop_pairs(name)

    def end(self) -> None:
        """Stop all, when the studio ends."""
        with self._lock:
            running = [one.process for one in self._started.values() if one.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        _, late = psutil.wait_procs([psutil.Process(p.pid) for p in running if psutil.pid_exists(p.pid)], _END_S)
        for process in late:
            process.kill()

    def room_for(self, name: str) -> Path:
        """An empty folder for a lesson's pairs as they arrive. Raises ConfigError if it is being taught, or there is an
        adapter of that name already."""
        place = self.folder / ".pairs" / name
        with self._lock:
            self._check_free(name)
        self._drop_pairs(name)
        for side in ("before", "after"):
            (place / side).mkdir(parents=True)
        return place

    def _drop_pairs(self, name: str) -> None:
        with self._lock:
            if not self._is_running(name):
                shutil.rmtree(self.folder / ".pairs" / name, ignore_errors=True)

    def _check_free(self, name: str) -> None:
        if self._is_running(name):
            raise ConfigError(f"{name} is being taught already: stop it first, or choose another name")
        if (self.folder / name / FILES["peft"]).exists():
            raise ConfigError(f"there is an adapter {name} already: delete it, or choose another name")

    def _is_running(self, name: str) -> bool:
        started = self._started.get(name)
        return started is not None and started.process.poll() is None


def _entry(name: str, lesson: Lesson | None, usable: bool) -> dict[str, Any]:
    if lesson is None:
        return {"name": name, "instruction": "", "status": "done" if usable else "running", "usable": usable}
    return {**lesson.as_json(), "name": name, "usable": usable, "verdict": lesson.verdict()}


def _last_words(said: Path) -> str:
    """The last line of what a process said, without the program's name."""
    try:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].removeprefix("ace: ")[:400] if lines else "it ended without a word: see the terminal"


def lessons_router(lessons: Lessons) -> APIRouter:
    """The routes of a studio's lessons."""
    router = APIRouter(prefix="/lessons", include_in_schema=False)

    @router.get("")
    async def all_lessons(front: TheFront) -> dict[str, Any]:
        """The adapters and how the lessons stand."""
        return {"data": await front.in_worker(lessons.all)}

    @router.post("", status_code=202)
    async def begin(front: TheFront, request: Request) -> Response:
        """Teach an edit. Fields: name, instruction, steps, session, nodes (JSON, ids whose answer and its parent are a
        pair). Files: before, after (in the same order), preview."""
        async with request.form(max_files=2 * _MOST_PAIRS + 1, max_fields=16) as form:
            words = {key: str(form.get(key) or "").strip() for key in _FIELDS}
            files = {key: await _read_all(form.getlist(key)) for key in ("before", "after", "preview")}
        opened = None
        if words["nodes"]:
            client = request.state.client
            opened = await front.in_worker(front.service.open_session, client, words["session"])
        name = await front.in_worker(_begin, front, lessons, words, files, opened)
        return JSONResponse({"name": name}, 202)

    @router.post("/{name}/stop", status_code=204)
    async def stop(front: TheFront, name: str) -> Response:
        """End a lesson; what was learnt is kept."""
        await front.in_worker(lessons.stop, check_name(name))
        return Response(status_code=204)

    @router.delete("/{name}", status_code=204)
    async def delete(front: TheFront, name: str) -> Response:
        """Delete an adapter."""
        await front.in_worker(lessons.delete, check_name(name))
        return Response(status_code=204)

    @router.get("/{name}/preview")
    async def preview(name: str) -> Response:
        """What the lesson makes of a picture that is not among its pairs."""
        path = lessons.folder / check_name(name) / PREVIEW
        if not path.is_file():
            raise NotFoundError(f"{name} has no preview yet")
        return FileResponse(path, media_type="image/png", headers={"cache-control": "no-store"})

    @router.get("/{name}/file")
    async def export(name: str, format: Format = "peft") -> Response:
        """The adapter as one file: for --lora and diffusers, or for ComfyUI."""
        path = lessons.folder / check_name(name) / FILES[format]
        if not path.is_file():
            raise NotFoundError(f"{name} has no such file")
        ending = "-comfyui" if format == "comfyui" else ""
        return FileResponse(path, media_type="application/octet-stream", filename=f"{name}{ending}.safetensors")

    return router


async def _read_all(parts: list[Any]) -> list[bytes]:
    return [await part.read() for part in parts if isinstance(part, UploadFile)]


def _begin(
    front: Front, lessons: Lessons, words: dict[str, str], files: dict[str, list[bytes]], opened: Opened | None
) -> str:
    """Write the pairs down and begin. Raises InputError."""
    name = check_name(words["name"])
    if len(files["before"]) != len(files["after"]):
        raise ConfigError(f"{len(files['before'])} pictures before and {len(files['after'])} after: they go in pairs")
    steps = int(words["steps"]) if re.fullmatch(r"[1-9]\d{0,5}", words["steps"]) else None
    place, number = lessons.room_for(name), 0
    for first, second in zip(files["before"], files["after"], strict=True):
        for side, data in (("before", first), ("after", second)):
            _keep(front, data, place / side / f"{number:03d}.png", f"picture {number + 1} {side}")
        number += 1
    for node_id in _nodes(words["nodes"]) if opened is not None else ():
        assert opened is not None
        source = opened.session.source(node_id)
        if source is None:
            raise ConfigError(f"@{int(node_id)} was made from words alone: a pair needs a picture before")
        source.image.save(place / "before" / f"{number:03d}.png")
        opened.session.answer(node_id).image.save(place / "after" / f"{number:03d}.png")
        number += 1
    looked_at = place / "preview.png" if files["preview"] else None
    if looked_at is not None:
        _keep(front, files["preview"][0], looked_at, "the preview's picture")
    lessons.begin(name, words["instruction"] or instruction_of(name), place, looked_at, steps)
    return name


def _nodes(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) > _MOST_PAIRS or not all(isinstance(one, str) for one in found):
        raise ConfigError("nodes: a JSON list of node ids")
    return found


def _keep(front: Front, data: bytes, path: Path, name: str) -> None:

    open_image(io.BytesIO(data), max_pixels=front.settings.max_pixels, name=name).image.save(path)
