"""Connections that are silent, slow, many or no HTTP: who else is kept out (nobody), and how they end."""

from __future__ import annotations

import json
import select
import socket
import time
from contextlib import ExitStack

import pytest

from ace.errors import ConfigError
from ace.server.connections import ConnectionLimits, room_for_connections
from ace.server.settings import ServerSettings
from tests.server.running import Running, random_family, running

FAMILY = random_family()
PATIENCE_S = 60


def connect(server: Running, **options: int) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.settimeout(PATIENCE_S)
    if "receive_buffer" in options:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["receive_buffer"])
    connection.connect((host, int(port)))
    return connection


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(PATIENCE_S)


def ends(connection: socket.socket) -> bool:
    """Whether the other side closes it, without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_crowd_of_silent_connections_keeps_nobody_out():
    with running(family=FAMILY, connections=ConnectionLimits(most=20)) as server, ExitStack() as crowd:
        silent = [crowd.enter_context(connect(server)) for _ in range(60)]
        with server.client() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/v1/models").status_code == 200
            assert http.post("/v1/images/generations", json={"prompt": "a", "steps": 1}).status_code == 200
        assert ends(silent[0]) and ends(silent[30])  # the oldest made room
        assert is_open(silent[-1])


def test_a_silent_connection_and_a_head_that_never_ends_are_closed():
    with running(family=FAMILY, connections=ConnectionLimits(idle_s=0.5)) as server:
        with connect(server) as silent:
            assert ends(silent)
        with connect(server) as dripping:
            dripping.sendall(b"GET /health HTTP/1.1\r\n")
            until = time.monotonic() + PATIENCE_S
            try:
                while time.monotonic() < until:
                    dripping.sendall(b"X-Drip: 1\r\n")
                    time.sleep(0.05)
                pytest.fail("it was never closed")
            except OSError:
                pass
        with server.client() as http:
            assert http.get("/health").status_code == 200


def test_one_address_has_its_share_and_a_proxy_more(monkeypatch):
    monkeypatch.setattr("ace.server.connections.is_loopback", lambda address: False)
    with running(family=FAMILY, connections=ConnectionLimits(most_per_address=3)) as server, ExitStack() as crowd:
        silent = [crowd.enter_context(connect(server)) for _ in range(5)]
        assert [is_open(one) for one in silent] == [False, False, True, True, True]
    trusting = ConnectionLimits(most_per_address=3, trusted=("127.0.0.1",))
    with running(family=FAMILY, connections=trusting) as server, ExitStack() as crowd:
        assert all(is_open(one) for one in [crowd.enter_context(connect(server)) for _ in range(5)])
    assert ServerSettings(proxies=("10.0.0.2",)).proxies == ("10.0.0.2",)
    with pytest.raises(ConfigError, match=r"no address of a proxy"):
        ServerSettings(proxies=("proxy.example",))


def test_who_does_not_read_is_cut_off():
    with running(family=FAMILY, connections=ConnectionLimits(stall_s=0.5)) as server:
        with connect(server, receive_buffer=4096) as slow:
            slow.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000)
            watch = select.poll()
            watch.register(slow, 0)
            assert watch.poll(PATIENCE_S * 1000), "it was never cut off"  # reset, without a byte being read here
        with server.client() as http:  # and who reads gets all
            assert http.get("/openapi.json").json()["info"]["title"] == "ace"


def test_health_answers_while_everything_else_is_busy(tmp_path):
    with running(family=FAMILY, data_folder=tmp_path, max_connections=4) as server, server.client() as http:
        session = http.post("/v1/sessions").json()["id"]
        with ExitStack() as streams:
            for _ in range(3):
                following = streams.enter_context(server.client())
                streams.enter_context(following.stream("GET", f"/v1/sessions/{session}/events"))
            refused = http.get("/v1/models")
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "busy"
            assert int(refused.headers["retry-after"]) >= 1
            assert http.get("/health").status_code == 200 and http.get("/ready").status_code == 200


def test_what_is_no_http_is_answered_as_other_faults_are_and_heads_are_bounded():
    with running(family=FAMILY) as server:
        long = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"
        for sent in (b"\x16\x03\x01 nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, long):
            with connect(server) as connection:
                try:
                    connection.sendall(sent)
                    answer = b"".join(iter(lambda: connection.recv(65536), b""))
                except ConnectionResetError:
                    continue
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b" 400 " in head.splitlines()[0] and b"x-request-id: req-" in head
            assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_connections_leave_descriptors_for_files(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    assert room_for_connections(1000) == 56
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100_000, 100_000))
    assert room_for_connections(1000) == 1000
