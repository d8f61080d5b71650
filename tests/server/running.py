"""A real server for tests: uvicorn on a free port, over a small pipeline of random weights, in a thread of this
process; and `ace serve` itself in a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from ace.conversation.family import Family
from ace.families.ace import AceFamily
from ace.server.app import create_app
from ace.server.connections import ConnectionLimits, uvicorn_config
from ace.server.engine import Engine
from ace.server.front import Front
from ace.server.ledger import Ledger
from ace.server.metrics import Metrics
from ace.server.run import listen
from ace.server.service import Service
from ace.server.settings import Limits, ServerSettings
from ace.weights.sources import ModelFiles, find_model
from tests.random_models import random_pipeline

SIDE = 64  # of the random model's pictures, px


def random_model_files() -> ModelFiles:
    """What the server says of the random model; the hash is that of the shipped one."""
    return replace(
        find_model("ace-tiny"), name="random", budget=16, cell_px=16, num_inference_steps=4, guidance_scale=3
    )


def random_family(**settings: object) -> AceFamily:
    """A loaded model of random weights."""
    pipeline = random_pipeline(**{"num_inference_steps": 4, "guidance_scale": 3.0, **settings})
    return AceFamily(random_model_files(), pipeline)


def random_engine(limits: Limits | None = None, **settings: object) -> Engine:
    """An engine over a model of random weights, not started."""
    return Engine(random_family(**settings), limits)


@dataclass
class Running:
    """A server that listens."""

    url: str
    engine: Engine
    key: str | None = None
    data_folder: Path = Path()
    front: Front | None = None

    @property
    def service(self) -> Service:
        return self.front.service

    @property
    def ledger(self) -> Ledger:
        return self.service.ledger

    @property
    def metrics(self) -> Metrics:
        return self.front.metrics

    def client(self, key: str | None = None, **settings: object) -> httpx2.Client:
        shown = key or self.key
        headers = {"authorization": f"Bearer {shown}"} if shown else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False, **settings)

    def openai(self, key: str = "any", **settings: object):
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key or key, max_retries=0, **settings)


@contextmanager
def running(
    limits: Limits | None = None,
    *,
    family: Family | None = None,
    make_app: Callable[..., FastAPI] = create_app,
    connections: ConnectionLimits | None = None,
    **settings: object,
) -> Iterator[Running]:
    """A server in this process, on a free port. family: the loaded model, by default one of random weights."""
    engine = Engine(family or random_family(), limits)
    server_settings = ServerSettings(**settings)
    ledger = Ledger(server_settings.data_folder)
    app = make_app(engine, server_settings, ledger)
    engine.start()
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn_config(app, connections, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        keys = server_settings.api_keys
        yield Running(
            f"http://127.0.0.1:{listener.getsockname()[1]}",
            engine,
            keys[0] if keys else None,
            server_settings.data_folder or Path(),
            app.state.front,
        )
    finally:
        server.should_exit = True
        thread.join()
        engine.stop()
        ledger.close()
        listener.close()


@contextmanager
def ace_serve(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen, str]]:
    """`ace serve` with the shipped model, in a process of its own; (process, address)."""
    command = [sys.executable, "-m", "ace", "serve", "--port", "0", "--device", "cpu", *arguments]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **(environment or {}),
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert " at http://" in line, process.stderr.read()
        yield process, line.split(" at ")[1].split("/v1")[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def picture(width: int = SIDE, height: int = SIDE, seed: int = 0) -> Image.Image:
    """A picture with structure."""
    values = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image, file_format: str = "PNG", **settings: object) -> bytes:
    """A picture as a file."""
    stream = io.BytesIO()
    image.save(stream, file_format, **settings)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    """A file as a picture."""
    return Image.open(io.BytesIO(data))


def wait_until(condition, timeout_s: float = 120) -> None:
    """Wait for something that will happen."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)
