"""`ace chat` as a process of its own, killed without warning, over the same HTTP that its page uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from ace.conversation.session import Session
from tests.random_models import TINY_LIKE, random_pipeline


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(TINY_LIKE, num_inference_steps=2).save_pretrained(folder)
    return folder


@contextmanager
def ace_chat(folder: Path, model: Path) -> Iterator[tuple[subprocess.Popen, httpx2.Client]]:
    """`ace chat` on a free port, and a client that has opened its start link."""
    command = [sys.executable, "-m", "ace", "chat", str(folder), "--model", str(model), "--no-browser"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert " is at http://" in line, process.stderr.read()
        link = line.split(" is at ")[1].split("  (")[0]
        with httpx2.Client(base_url=link.split("/start/")[0], timeout=120, trust_env=False) as http:
            http.get(link).raise_for_status()
            assert "to open it once more: http://" in process.stdout.readline()
            yield process, http
    finally:
        process.kill()
        process.communicate()


def ask(http: httpx2.Client, **fields: object) -> dict:
    """A turn of the session; returns its new node."""
    reply = http.post("/v1/sessions/studio/turns", json=fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["nodes"][0]


def test_a_conversation_outlives_a_kill_in_the_middle_of_a_turn_and_between_turns(tmp_path, model_folder):
    folder = tmp_path / "talk"
    with ace_chat(folder, model_folder) as (process, http):
        ask(http, prompt="a red apple", steps=2, seed=1)
        before = http.get("/v1/sessions/studio").json()
        long = {"prompt": "never", "parent": "0001", "steps": 1000, "detached": True}
        assert http.post("/v1/sessions/studio/turns", json=long).status_code == 202
        with http.stream("GET", "/v1/sessions/studio/events") as events:
            for line in events.iter_lines():
                told = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else None
                if told and any(one["steps_done"] for one in told["requests"] if one["prompt"] == "never"):
                    break
            process.kill()
            process.wait()
    assert Session.open(folder).node_ids() == ("0001",)

    with ace_chat(folder, model_folder) as (process, http):
        assert http.get("/v1/sessions/studio").json() == before
        ask(http, prompt="make it blue", parent="0001", steps=1, seed="2")
        process.kill()
        process.wait()
    session = Session.open(folder)
    assert [(node.instruction, node.parents) for node in session.nodes()] == [
        ("a red apple", ()),
        ("make it blue", ("0001",)),
    ]
    assert session.head() == "0002"
