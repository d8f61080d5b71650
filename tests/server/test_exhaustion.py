"""Small requests that would take much: of time, of memory, of the disk; and what is free again afterwards."""

from __future__ import annotations

import io
import json
import sqlite3
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ace.conditions.opener import open_files
from ace.errors import ConfigError
from ace.server.ledger import Ledger
from ace.server.queue import BURST, StepShares
from ace.server.settings import Limits, ServerSettings
from tests.server.running import Running, picture, png, random_engine, random_family, running, wait_until
from tests.server.test_engine import words

FAMILY = random_family()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Running:
    with running(family=FAMILY, data_folder=tmp_path_factory.mktemp("data")) as server:
        yield server


def edit(server: Running, *files: bytes, **fields: str):
    with server.client() as http:
        sent = [("image[]", (f"{number}.png", data)) for number, data in enumerate(files)]
        return http.post("/v1/images/edits", files=sent, data={"prompt": "a", "steps": "1", **fields})


def refused(reply, status: int, *words: str) -> bool:
    message = reply.json()["error"]["message"]
    named = reply.headers.get("x-request-id", "")
    return reply.status_code == status and bool(named) and all(word in message for word in words)


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    data = png(picture(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


# Images


def test_a_jpeg_of_ten_thousand_scans_is_refused_before_it_is_decoded(server):
    assert refused(edit(server, many_scans(10_000)), 400, "more than 100 scans")
    assert edit(server, png(picture(), "JPEG", progressive=True)).status_code == 200


def test_files_are_opened_in_other_processes(server, monkeypatch):
    opened = []
    real = open_files
    monkeypatch.setattr("ace.server.images.open_files", lambda *a, **k: opened.append(len(a[0])) or real(*a, **k))
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("it was opened in the server's own process"))
    assert edit(server, png(picture())).status_code == 200
    assert opened == [1]


def test_what_takes_too_long_to_open_is_given_up_and_the_next_is_not():
    with running(family=FAMILY, decode_timeout_s=1) as server:
        assert edit(server, png(picture())).status_code in (200, 400)  # a process has to start, once
    with running(family=FAMILY, decode_timeout_s=2, max_pixels=64_000_000) as server:
        slow = edit(server, *[png(Image.new("RGB", (8000, 8000)))] * 2, metadata="false")
        assert refused(slow, 400, "takes too long to open") or refused(slow, 400, "too large")


def test_ten_images_are_too_many_and_nine_large_ones_are_counted_before_they_are_decoded(server, monkeypatch):
    assert edit(server, *[png(picture())] * 10).status_code == 400
    blank = png(Image.new("1", (5600, 5600)))  # 31 million pixels in 4 kB
    assert len(blank) < 10_000
    assert refused(edit(server, *[blank] * 9), 400, "too large together")
    assert edit(server, png(picture())).status_code == 200


# JSON


def test_a_large_body_is_only_read_where_an_image_is_expected(server):
    keys = "{" + ",".join(f'"k{n}":0' for n in range(60_000)) + "}"
    with server.client() as http:
        headers = {"content-type": "application/json"}
        for path in ("/v1/images/generations", "/v1/sessions"):
            assert refused(http.post(path, content=keys, headers=headers), 413, "too large")
        session = http.post("/v1/sessions").json()["id"]
        for path in ("/v1/images/edits", f"/v1/sessions/{session}/turns"):
            assert refused(http.post(path, content=keys, headers=headers), 413, "too many values")
        assert http.put(f"/v1/sessions/{session}/head", content=keys, headers=headers).status_code == 413
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused(server, opening):
    headers = {"content-type": "application/json"}
    with server.client() as http:
        for path, depth in (("/v1/images/generations", 15_000 // len(opening)), ("/v1/images/edits", 5_000)):
            reply = http.post(path, content=opening * depth, headers=headers)
            assert reply.status_code in (400, 413) and "error" in reply.json()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "multipart/form-data; boundary=x; charset=undefined"}, 400),
        ({"content-type": "multipart/form-data"}, 400),
        ({"origin": "http://["}, 403),
    ],
)
def test_odd_headers_are_refused_with_one_line(server, headers, status):
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--\r\n'
    with server.client() as http:
        request = http.build_request("POST", "/v1/images/edits", content=body, headers=headers)
        reply = http.send(request)
        assert reply.status_code == status or ("content-length" in headers and reply.status_code in (400, 413))
        assert "\n" not in reply.json()["error"]["message"] and reply.headers["x-request-id"]


# Work


def test_a_request_is_refused_by_the_time_it_would_take_here():
    with pytest.raises(ConfigError, match="--max-seconds"):
        Limits(max_seconds=-1)
    with running(Limits(max_seconds=1e-6), family=FAMILY) as server, server.client() as http:
        reply = http.post("/v1/images/generations", json={"prompt": "a", "steps": 1000, "n": 10})
        assert refused(reply, 400, "s are allowed", "fewer steps")
    engine = random_engine(Limits(max_seconds=10))
    engine._best_rate = engine.family.cost(words(steps=1)).operations / 4  # a machine on which one takes 4 s
    engine._check_time(engine.family.cost(words(steps=1)).operations)
    with pytest.raises(ConfigError, match=r"about 12 s"):
        engine._check_time(3 * engine.family.cost(words(steps=1)).operations)


def test_a_light_request_is_not_slowed_by_heavy_company():
    shares: StepShares[str] = StepShares()
    costs = {f"heavy{n}": 100 for n in range(10)} | {"light": 1}
    work = dict.fromkeys(costs, 0)
    passes = 2000
    for _ in range(passes):
        due = shares.due(costs)
        assert "light" in due and len(due) <= 2
        for one in due:
            work[one] += costs[one]
    assert work["light"] == passes
    heavy = [work[f"heavy{n}"] for n in range(10)]
    assert sum(heavy) <= BURST * passes + 1000  # a light step takes BURST + 1 times as long as alone
    assert min(heavy) > 0 and max(heavy) - min(heavy) <= 100  # and nobody starves


def test_requests_of_about_the_same_weight_step_together():
    shares: StepShares[str] = StepShares()
    assert shares.due({"a": 10, "b": 40, "c": 25}) == ["a", "b", "c"]
    assert shares.due({"heavy": 100}) == ["heavy"]
    assert shares.due({}) == []


def test_all_of_a_mixture_end_whatever_they_weigh():
    engine = random_engine()
    engine.start()
    try:
        heavy = [words(steps=3, seed=n, size=(128, 128)) for n in range(3)]
        light = words(steps=3, seed=9, size=(16, 16))
        alone = engine.submit([light], "a")[0].result.result(timeout=120)
        submitted = [*engine.submit(heavy, "b"), *engine.submit([light], "c")]
        made = [request.result.result(timeout=120) for request in submitted]
        assert np.array_equal(np.asarray(made[-1].content), np.asarray(alone.content))
    finally:
        engine.stop()


# The disk


def test_after_a_full_disk_everything_is_free_again(tmp_path):
    with running(family=FAMILY, data_folder=tmp_path, images_per_minute=3) as server, server.client() as http:
        ledger = server.ledger

        def ask(request_id: str):
            body = {"prompt": "a", "steps": 1}
            return http.post("/v1/images/generations", json=body, headers={"x-client-request-id": request_id})

        pages = ledger._database.execute("PRAGMA page_count").fetchone()[0]
        ledger._database.execute(f"PRAGMA max_page_count = {pages}")
        for length in (500, 0):  # the second time what is left between larger rows
            rows = [(f"{number} {length}", "a" * length) for number in range(10_000)]
            with pytest.raises(sqlite3.OperationalError, match="full"):
                ledger._database.executemany("INSERT INTO requests VALUES (?, '', '', 0, 0, ?, '{}')", rows)
        replies = [ask("large-1") for _ in range(5)]
        for reply in replies:
            assert refused(reply, 507, "disk"), reply.text
            assert reply.headers["x-request-id"] == "large-1" and reply.json()["error"]["code"] == "disk"
        ledger._database.execute("PRAGMA max_page_count = 1000000")
        assert ask("large-1").status_code == 200  # neither its id nor its quota is taken
        assert server.service._held == 0 and not server.service._accepted


def test_an_end_that_cannot_be_written_down_still_ends(tmp_path, monkeypatch):
    with running(family=FAMILY, data_folder=tmp_path) as server, server.client() as http:
        monkeypatch.setattr(Ledger, "end", _full)
        assert http.post("/v1/images/generations", json={"prompt": "a", "steps": 1}).status_code == 200
        assert server.service._held == 0 and not server.service._accepted


def _full(*_: object) -> None:
    from ace.errors import OutputError

    raise OutputError("the ledger of requests cannot be written (disk full): check the disk")


def test_an_error_that_nobody_expected_is_json_with_an_id(server, monkeypatch):
    def broken() -> bytes:
        raise KeyError("a secret place /root")

    monkeypatch.setattr(server.metrics, "text", broken)
    with server.client() as http:
        reply = http.get("/metrics")
        assert refused(reply, 500, "could not answer") and "secret" not in reply.text
        monkeypatch.undo()
        assert 'status="500"' in http.get("/metrics").text


# Sessions


@pytest.fixture
def talk(server) -> str:
    """A session with two rounds."""
    with server.client() as http:
        session = http.post("/v1/sessions").json()["id"]
        for prompt in ("a cat", "make it blue"):
            assert http.post(f"/v1/sessions/{session}/turns", json={"prompt": prompt, "steps": 1}).status_code == 200
    return session


def folder_of(server: Running, session: str) -> Path:
    (folder,) = server.data_folder.glob(f"sessions/*/{session}")
    return folder


def change_node(folder: Path, node: str, change) -> None:
    path = folder / "nodes" / node / "node.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))


DAMAGE = [
    lambda entry: entry["recipe"]["settings"].update(feather_px="abc"),
    lambda entry: entry["recipe"]["settings"].update(edits="yes"),
    lambda entry: entry["recipe"]["settings"].update(max_seq_length=-1),
    lambda entry: entry["recipe"].update(num_inference_steps=10**12),
    lambda entry: entry["recipe"].update(size_px=[10**9, 10**9]),
    lambda entry: entry["recipe"].update(instruction=None),
    lambda entry: entry.update(images=[entry["image"]] * 60, masks=[None] * 60),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_session_with_a_damaged_node_opens_and_shows_what_is_damaged(server, talk, damage):
    change_node(folder_of(server, talk), "0002", damage)
    with server.client() as http:
        reply = http.get(f"/v1/sessions/{talk}")
        assert reply.status_code == 200 and reply.json()["damaged"] == ["0002"]
        assert [node["id"] for node in reply.json()["nodes"]] == ["0001"]
        on = http.post(f"/v1/sessions/{talk}/turns", json={"prompt": "again", "steps": 1, "parent": "0001"})
        assert on.status_code == 200
        for path in ("", "/drift", "/image"):
            assert http.get(f"/v1/sessions/{talk}/nodes/0002{path}").status_code in (200, 400)


@pytest.mark.parametrize("data", [b"", b"no picture", "cut"])
def test_a_damaged_answer_bricks_nothing(server, talk, data):
    path = folder_of(server, talk) / "nodes" / "0002" / "image.png"
    path.write_bytes(path.read_bytes()[:60] if data == "cut" else data)
    with server.client() as http:
        reply = http.get(f"/v1/sessions/{talk}")
        assert reply.status_code == 200
        assert reply.json()["damaged"] == ["0002"] or data == "cut"
        assert http.get(f"/v1/sessions/{talk}/nodes/0002/image?format=thumbnail").status_code == 400


def repacked(server: Running, session: str, change) -> bytes:
    """A session's archive whose members a function changes: name, bytes → bytes."""
    with server.client() as http:
        data = http.get(f"/v1/sessions/{session}/archive").content
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    return stream.getvalue()


def import_into_new(server: Running, data: bytes):
    with server.client() as http:
        session = http.post("/v1/sessions").json()["id"]
        reply = http.post(f"/v1/sessions/{session}/archive", content=data)
        assert http.get(f"/v1/sessions/{session}").json()["nodes"] == [] or reply.status_code == 201
    return reply


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_node_is_not_imported(server, talk, damage):
    def change(name: str, data: bytes) -> bytes:
        if name != "nodes/0002/node.json":
            return data
        entry = json.loads(data)
        damage(entry)
        return json.dumps(entry).encode()

    assert refused(import_into_new(server, repacked(server, talk, change)), 400, "node 0002 is damaged")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_no_numbers_are_not_imported(server, talk, value):
    import hashlib

    from safetensors.numpy import load, save

    latents: dict[str, bytes] = {}

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("0001/latents.safetensors"):
            found = load(data)["latents"].copy()
            found.flat[0] = value
            latents["0001"] = save({"latents": found})
            return latents["0001"]
        return data

    def rehash(name: str, data: bytes) -> bytes:
        data = change(name, data)
        if name == "nodes/0001/node.json":
            entry = json.loads(data)
            entry["latents"]["sha256"] = hashlib.sha256(latents["0001"]).hexdigest()
            return json.dumps(entry).encode()
        return data

    repacked(server, talk, change)
    assert latents
    assert refused(import_into_new(server, repacked(server, talk, rehash)), 400, "no finite numbers")


def test_blank_inputs_of_an_archive_are_counted_before_they_are_decoded(server, talk):
    import hashlib

    blank = png(Image.new("1", (5600, 5600)))

    def change(name: str, data: bytes) -> bytes:
        if name == "nodes/0001/node.json":
            entry = json.loads(data)
            stored = {"file": "input0.png", "sha256": hashlib.sha256(blank).hexdigest()}
            entry["images"] = [{**stored, "file": f"input{n}.png"} for n in range(9)]
            entry["masks"] = [None] * 9
            return json.dumps(entry).encode()
        return data

    data = repacked(server, talk, change)
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a") as archive:
        for number in range(9):
            archive.writestr(f"nodes/0001/input{number}.png", blank)
    assert refused(import_into_new(server, stream.getvalue()), 400, "million pixels together")


def test_a_conversation_of_too_many_pixels_is_refused_before_it_is_opened(tmp_path, talk, server):
    from ace.conversation.session import Session
    from ace.errors import SessionError

    session = Session.open(folder_of(server, talk))
    assert len(session.history("0002")) == 2
    assert len(session.history("0002", most=1)) == 1
    session = Session.open(folder_of(server, talk))
    session.max_pixels = 5000
    with pytest.raises(SessionError, match="million pixels together"):
        session.history("0002")
    assert len(session.history("0002", most=1)) == 1


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_damaged_and_encrypted_members_are_refused(server, method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("session.json", '{"kind": "ace-session", "format_version": 1}' + " " * 2000)
    data = bytearray(stream.getvalue())
    start = 30 + len("session.json")
    data[start + 4 : start + 24] = bytes(20)
    assert refused(import_into_new(server, bytes(data)), 400, "not a ZIP file, or damaged")
    encrypted = bytearray(stream.getvalue())
    central = encrypted.rindex(b"PK\x01\x02")
    for place in (6, central + 8):
        (flags,) = struct.unpack_from("<H", encrypted, place)
        struct.pack_into("<H", encrypted, place, flags | 1)
    assert refused(import_into_new(server, bytes(encrypted)), 400, "no session that can be added")


def test_lists_and_archives_beside_deletions_are_never_answered_5xx(server):
    statuses: set[int] = set()

    def work(number: int) -> None:
        with server.client() as http:
            for _ in range(20):
                session = http.post("/v1/sessions").json()["id"]
                other = threading.Thread(target=look, args=(session,))
                other.start()
                statuses.add(http.delete(f"/v1/sessions/{session}").status_code)
                statuses.add(http.get("/v1/sessions").status_code)
                other.join()

    def look(session: str) -> None:
        with server.client() as http:
            statuses.update(http.get(f"/v1/sessions/{session}{path}").status_code for path in ("", "/archive"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses <= {200, 204, 400, 404}
    wait_until(lambda: server.engine.num_running == 0)


# Moderation


class _Net:
    """A network that finds one prompt's results unsafe."""

    unsafe = 0.95

    def __call__(self, images):
        return np.full(len(images), self.unsafe, np.float32)


def test_without_the_weights_answers_say_that_nothing_was_checked(monkeypatch):
    monkeypatch.setattr("ace.extract.safety.find_weights", _missing)
    with running(family=FAMILY) as server, server.client() as http:
        for moderation in ({}, {"moderation": "auto"}, {"moderation": "low"}):
            reply = http.post("/v1/images/generations", json={"prompt": "a", "steps": 1, **moderation})
            assert reply.json()["data"][0]["ace"]["moderation"] == "not checked"


def _missing(name: str) -> Path:
    from ace.errors import MissingDependencyError

    raise MissingDependencyError(f"{name} is missing")


def test_unsafe_results_are_refused_in_openais_form_unless_moderation_is_low(tmp_path, monkeypatch):
    from openai import BadRequestError

    monkeypatch.setattr("ace.extract.safety.SafetyNet", _Net)
    with running(family=FAMILY, data_folder=tmp_path, max_unsafe=0.9) as server, server.client() as http:
        body = {"prompt": "a", "steps": 2}
        for moderation in ({}, {"moderation": "auto"}):
            reply = http.post("/v1/images/generations", json={**body, **moderation})
            error = reply.json()["error"]
            assert reply.status_code == 400 and error["code"] == "moderation_blocked"
            assert error["type"] == "image_generation_user_error"
        low = http.post("/v1/images/generations", json={**body, "moderation": "low"})
        assert low.status_code == 200 and low.json()["data"][0]["ace"]["moderation"] == "not checked"
        streamed = http.post("/v1/images/generations", json={**body, "stream": True, "partial_images": 1})
        assert "moderation_blocked" in streamed.text and "b64_json" not in streamed.text
        session = http.post("/v1/sessions").json()["id"]
        assert http.post(f"/v1/sessions/{session}/turns", json=body).status_code == 400
        assert http.get(f"/v1/sessions/{session}").json()["nodes"] == []
        with pytest.raises(BadRequestError) as caught:
            server.openai().images.generate(prompt="a", extra_body={"steps": 1})
        assert caught.value.code == "moderation_blocked"
        monkeypatch.setattr(_Net, "unsafe", 0.5)
        safe = http.post("/v1/images/generations", json=body)
        assert safe.json()["data"][0]["ace"]["moderation"] == "checked"
    with pytest.raises(ConfigError, match="threshold"):
        ServerSettings(max_unsafe=0)
