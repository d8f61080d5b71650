"""`ace serve` as a process of its own: signals, kills, restarts, wrong options."""

from __future__ import annotations

import signal
import socket
import threading

import httpx2
import pytest

from ace.errors import ConfigError
from ace.server.ledger import Ledger
from ace.server.run import serve
from ace.server.settings import ServerSettings
from tests.server.running import ace_serve, wait_until


def ask(url: str, request_id: str, steps: int, answers: list) -> threading.Thread:
    """Ask in a thread of its own; the answer, or the error, is appended."""

    def run() -> None:
        headers = {"x-client-request-id": request_id}
        body = {"prompt": "a red apple", "steps": steps}
        try:
            post = httpx2.post(f"{url}/v1/images/generations", json=body, headers=headers, timeout=120, trust_env=False)
            answers.append(post)
        except httpx2.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: status(url, request_id) == "running" or answers)
    return thread


def status(url: str, request_id: str) -> str | None:
    return httpx2.get(f"{url}/v1/requests/{request_id}", timeout=120, trust_env=False).json().get("status")


def test_a_signal_drains_a_kill_loses_and_a_restart_says_so(tmp_path):
    data = str(tmp_path / "data")
    answers: list = []
    with ace_serve("--data", data, "--drain", "1") as (process, url):
        asked = ask(url, "killed", 1000, answers)
        process.kill()
        process.wait()
        asked.join()
        assert isinstance(answers.pop(), httpx2.HTTPError)

    with ace_serve("--data", data, "--drain", "2") as (process, url):
        lost = httpx2.get(f"{url}/v1/requests/killed", timeout=120, trust_env=False).json()
        assert (lost["status"], lost["message"]) == ("lost", "lost by restart")
        quick, slow = [], []
        threads = [ask(url, "slow", 1000, slow), ask(url, "quick", 1, quick)]
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(timeout=120) == 0
        assert quick[0].status_code == 200  # accepted work that could end did
        assert slow[0].status_code == 503 and "stopped before" in slow[0].json()["error"]["message"]
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_what_is_taken_is_refused_before_a_model_is_loaded(tmp_path):
    def never() -> None:
        pytest.fail("it was loaded")

    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="cannot listen"):
        serve(never, ServerSettings(port=other.getsockname()[1]))
    ledger = Ledger(tmp_path)
    with pytest.raises(ConfigError, match="another server uses this data folder"):
        serve(never, ServerSettings(port=0, data_folder=tmp_path))
    ledger.close()
    (tmp_path / "requests.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="is damaged"):
        serve(never, ServerSettings(port=0, data_folder=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "set ACE_API_KEYS"),
        (["--key-file", "nothing"], "key file nothing cannot be read"),
        (["--url-host", "ftp://x"], "no host to fetch from"),
        (["--max-together", "0"], "less than 1"),
        (["--port", "70000"], "port 70000"),
        (["--model", "nothing"], "unknown model"),
    ],
)
def test_wrong_options_end_with_one_line(arguments, message):
    from typer.testing import CliRunner

    from ace.cli import app

    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
