"""`ace chat` as a process of its own, killed without warning, over the same HTTP that its page uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ace.conversation.session import Session
from tests.random_models import TINY_LIKE, random_pipeline


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(TINY_LIKE, num_inference_steps=2).save_pretrained(folder)
    return folder


@contextmanager
def ace_chat(folder: Path, model: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """`ace chat` on a free port; (process, address)."""
    command = [sys.executable, "-m", "ace", "chat", str(folder), "--model", str(model), "--no-browser"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert " is at http://" in line, process.stderr.read()
        yield process, line.split(" is at ")[1].split("/  (")[0]
    finally:
        process.kill()
        process.communicate()


def messages(address: str, event: str, data: dict | None = None) -> Iterator[dict]:
    """Send an event as the page does, and read what comes back until nothing runs any more: first the page's view,
    then what changes in it, at last the whole view again."""
    with httpx.Client(timeout=120, trust_env=False) as http:
        events = http.get(f"{address}/config").json()["dependencies"]
        (number,) = (one["id"] for one in events if one["targets"][0][1] == event)
        asked = {"data": [], "event_data": data, "fn_index": number, "session_hash": "test"}
        http.post(f"{address}/gradio_api/queue/join", json=asked).raise_for_status()
        with http.stream("GET", f"{address}/gradio_api/queue/data?session_hash=test") as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") in ("process_generating", "process_completed"):
                    yield message
                if message.get("msg") == "process_completed":
                    return


def last_view(address: str, event: str, data: dict | None = None) -> dict:
    *_, last = messages(address, event, data)
    return last["output"]["data"][0]


def test_a_conversation_outlives_a_kill_in_the_middle_of_a_turn_and_between_turns(tmp_path, model_folder):
    folder = tmp_path / "talk"
    with ace_chat(folder, model_folder) as (process, address):
        before = last_view(address, "send", {"text": "a red apple", "steps": 2, "seed": 1})
        for message in messages(address, "send", {"text": "never", "start": "0001", "steps": 1000}):
            if '["running", "step"]' in json.dumps(message):
                break
        process.kill()
        process.wait()
    assert Session.open(folder).node_ids() == ("0001",)

    with ace_chat(folder, model_folder) as (process, address):
        found = last_view(address, "refresh")
        assert {**found, "version": 0} == {**before, "version": 0}
        last_view(address, "send", {"text": "make it blue", "start": "0001", "steps": 1, "seed": 2})
        process.kill()
        process.wait()
    session = Session.open(folder)
    assert [(node.instruction, node.parents) for node in session.nodes()] == [
        ("a red apple", ()),
        ("make it blue", ("0001",)),
    ]
    assert session.head() == "0002"
