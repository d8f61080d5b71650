"""One test or more for every row of docs/threat-model.md, against a real server where a server is attacked."""

from __future__ import annotations

import base64
import io
import ipaddress
import os
import pickle
import re
import shutil
import socket
import stat
import struct
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ace.errors import CheckpointError, ConfigError, ImageError, InputError
from ace.server.images import AllowedHost, Upload, fetch, is_public, open_mask_upload, open_upload, resolve
from ace.server.keys import Keys
from ace.server.settings import Limits, ServerSettings
from ace.weights.sources import SHIPPED_MODEL, find_model, load_pipeline
from tests.server.running import Running, opened, picture, png, running, wait_until
from tests.server.test_engine import words

KEY, OTHER = "first-key-0123456789", "other-key-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Running:
    """A server with two keys, a data folder and small limits."""
    with running(
        Limits(max_operations=5e9),
        api_keys=(KEY, OTHER),
        data_folder=tmp_path_factory.mktemp("data"),
        max_upload_bytes=300_000,
        max_pixels=500_000,
        upload_timeout_s=5.0,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def keyless() -> Running:
    with running() as server:
        yield server


def edit(server: Running, data: bytes, key: str = KEY, name: str = "p.png", **fields: str):
    with server.client(key) as http:
        return http.post(
            "/v1/images/edits", files={"image": (name, data)}, data={"prompt": "a", "steps": "1", **fields}
        )


def refused(reply, status: int, *words: str) -> bool:
    message = reply.json()["error"]["message"]
    return reply.status_code == status and all(word in message for word in words)


# Auth


def test_another_address_than_loopback_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="ACE_API_KEYS"):
            ServerSettings(host=host)
        assert ServerSettings(host=host, api_keys=(KEY,))
    assert ServerSettings(host="127.0.0.1") and ServerSettings(host="::1") and ServerSettings(host="localhost")
    with pytest.raises(ConfigError, match="shorter than 16"):
        ServerSettings(api_keys=("short",))


@pytest.mark.parametrize("shown", [None, "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", KEY])
def test_without_a_valid_key_nothing_but_health_is_told(server, shown):
    with server.client() as http:
        del http.headers["authorization"]
        headers = {} if shown is None else {"authorization": shown}
        for path in ("/v1/models", "/v1/sessions", "/metrics", "/v1/requests/1", "/nothing"):
            assert refused(http.get(path, headers=headers), 401, "no valid API key")
        assert http.post("/v1/images/generations", json={"prompt": "a"}, headers=headers).status_code == 401
        assert http.get("/health", headers=headers).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch):
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append((one, other)) or real(one, other))
    keys = Keys((KEY, OTHER))
    assert keys.client_of(f"Bearer {KEY}") != keys.client_of(f"Bearer {OTHER}")
    assert len(compared) == 4  # also those after the one that fits
    assert all(len(one) == len(other) == 32 for one, other in compared)
    assert KEY not in (keys.client_of(f"Bearer {KEY}") or "")


def test_one_key_sees_nothing_of_anothers(server):
    with server.client(KEY) as mine, server.client(OTHER) as theirs:
        session = mine.post("/v1/sessions").json()["id"]
        made = mine.post("/v1/images/generations", json={"prompt": "a", "steps": 1})
        assert theirs.get(f"/v1/sessions/{session}").status_code == 404
        assert theirs.delete(f"/v1/sessions/{session}").status_code == 404
        assert theirs.get(f"/v1/requests/{made.json()['id']}").status_code == 404
        assert session not in theirs.get("/v1/sessions").text
        assert mine.get(f"/v1/sessions/{session}").status_code == 200


# Other web pages


def test_on_loopback_other_web_pages_and_names_are_refused(keyless):
    with keyless.client() as http:
        assert refused(http.get("/v1/models", headers={"host": "evil.example:8000"}), 403, "127.0.0.1")
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            reply = http.post("/v1/images/generations", json={"prompt": "a"}, headers={"origin": origin})
            assert refused(reply, 403, "other web pages")
        assert http.get("/v1/models", headers={"origin": keyless.url}).status_code == 200
        assert http.get("/v1/models", headers={"host": "localhost:8000"}).status_code == 200


def test_a_refusal_reaches_who_is_still_sending(server):
    host, port = server.url.removeprefix("http://").split(":")
    lines = ("POST /v1/images/generations HTTP/1.1", "Host: a", "Authorization: Bearer wrong", "Content-Length: 100000")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        first = connection.recv(1)  # the answer is there before the body is
        for _ in range(10):
            connection.sendall(bytes(10_000))
        answer = first + b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 401 " in answer.splitlines()[0]
    assert b"invalid_api_key" in answer


# Uploads


def bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than its few bytes hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (1000, 1000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(server, size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    assert refused(edit(server, bomb_png(*size)), 400, "million pixels") or refused(
        edit(server, bomb_png(*size)), 400, "too large"
    )


def test_only_listed_formats_are_opened_whatever_they_are_called(server):
    for file_format in ("ICO", "EPS", "TGA", "PCX"):
        assert refused(edit(server, png(picture(), file_format), name="p.png"), 400, "not a picture that can be read")
    assert refused(edit(server, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 400, "not a picture that can be read")


def test_damaged_and_empty_files_are_refused_and_hurt_nobody_else(server):
    whole = png(picture())
    for data in (b"", whole[:60], whole[:-200], b"\x89PNG\r\n\x1a\n" + bytes(500)):
        assert edit(server, data).status_code == 400
    assert edit(server, whole).status_code == 200


def test_a_large_text_chunk_is_refused_or_ignored(server):
    chunk = PngInfo()
    chunk.add_text("bomb", "a" * 50_000_000, zip=True)  # a few kilobytes in the file
    data = png(picture(), pnginfo=chunk)
    assert len(data) < 300_000
    assert edit(server, data).status_code in (200, 400)


def test_what_is_too_large_is_refused_before_it_is_read(server):
    assert refused(edit(server, bytes(400_000)), 413, "too large")
    with server.client() as http:  # without a length, as it arrives

        def pieces():
            for _ in range(100):
                yield bytes(10_000)

        headers = {"content-type": "application/json"}
        reply = http.post("/v1/images/generations", content=pieces(), headers=headers)
        assert refused(reply, 413, "too large")
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert http.post("/v1/images/edits", content=pieces(), headers=headers).status_code in (400, 413)
    fields = {f"field{n}": "a" for n in range(100)}
    assert edit(server, png(picture()), **fields).status_code == 400


def test_an_upload_that_never_ends_is_cut_off(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b"408" in connection.recv(1000).split(b"\r\n")[0]


def test_all_uploads_together_are_bounded_and_room_comes_back():
    with running(max_receiving_bytes=150_000) as server:
        host, port = server.url.removeprefix("http://").split(":")
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with server.client() as http, socket.create_connection((host, int(port))) as slow:
            slow.sendall(f"{head}Content-Length: 120000\r\n\r\n".encode() + bytes(100_000))  # and no end
            large = {"prompt": "a", "steps": 1, "user": "u" * 100_000}
            wait_until(lambda: http.post("/v1/images/generations", json=large).status_code == 503)
            reply = http.post("/v1/images/generations", json=large)
            assert refused(reply, 503, "too much is being sent") and int(reply.headers["retry-after"]) >= 1
            assert http.post("/v1/images/generations", json={"prompt": "a", "steps": 1}).status_code == 200
            slow.close()
            wait_until(lambda: http.post("/v1/images/generations", json=large).status_code == 200)


def test_what_a_person_sees_is_what_the_model_sees():
    """Orientation in EXIF and colours hidden under transparency."""
    image = picture(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_upload(Upload(png(image, "JPEG", exif=exif)), 10_000)
    assert turned.size == (20, 40)
    hidden = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # red that nobody sees
    assert np.asarray(open_upload(Upload(png(hidden)), 10_000).image).min() == 255
    mask = Image.new("RGBA", (40, 20), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 40, 10))
    turned_mask = open_mask_upload(Upload(png(mask, exif=exif)), (20, 40), 10_000)  # turned just as its picture
    assert turned_mask.image.getbbox() == (10, 0, 20, 40)


# Addresses


class _Files(BaseHTTPRequestHandler):
    """A host of pictures, some of them unfriendly."""

    hosts: list[str] = []

    def do_GET(self) -> None:
        self.hosts.append(self.headers["host"])
        if self.path == "/away":
            self.send_response(302)
            self.send_header("location", "/p.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(50_000) if self.path == "/large" else png(picture()))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pictures_at() -> str:
    server = HTTPServer(("127.0.0.1", 0), _Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_are_not_fetched_unless_the_operator_named_the_host(server, pictures_at):
    with server.client() as http:
        body = {"prompt": "a", "images": [{"image_url": f"http://{pictures_at}/p.png"}]}
        assert refused(http.post("/v1/images/edits", json=body), 400, "fetches no pictures")
    allowed = (AllowedHost.parse("images.example.org"),)
    for url in (
        f"http://{pictures_at}/p.png",
        "http://images.example.org/p.png",  # not by this scheme
        "https://images.example.org:8443/p.png",
        "https://images.example.org.evil.example/p.png",
        "https://images.example.org@evil.example/p.png",
        "https://user:pw@images.example.org/p.png",
        "https://evil.example/images.example.org",
        "file:///etc/passwd",
        "ftp://images.example.org/p.png",
        "//images.example.org/p.png",
        "https://[::1/p.png",
    ):
        with pytest.raises(InputError, match=r"fetches no pictures|cannot be read"):
            fetch(url, allowed, 10_000)


def test_an_allowed_host_is_fetched_without_redirects_and_within_bounds(pictures_at):
    allowed = (AllowedHost.parse(f"http://{pictures_at}"),)
    upload = fetch(f"http://{pictures_at}/folder/p.png", allowed, 20_000)
    assert opened(upload.data).size == (64, 64) and upload.name == "p.png"
    assert _Files.hosts[-1] == pictures_at
    with pytest.raises(ImageError, match="answered 302"):
        fetch(f"http://{pictures_at}/away", allowed, 20_000)
    with pytest.raises(ImageError, match="larger than"):
        fetch(f"http://{pictures_at}/large", allowed, 20_000)


def test_an_allowed_name_that_leads_into_a_network_is_refused():
    with pytest.raises(InputError, match="inside a network"):
        resolve(AllowedHost.parse("https://localhost"))


def test_the_connection_goes_to_the_address_that_was_checked(pictures_at, monkeypatch):
    """A name that leads elsewhere the second time (DNS rebinding) is asked for once only."""
    asked = []
    port = int(pictures_at.split(":")[1])

    def look_up(host, *_: object, **__: object) -> list:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: (look_up if "example" in str(host) else real)(host, *a, **k)
    )
    monkeypatch.setattr("ace.server.images.is_public", lambda address: True)
    name = f"http://pictures.example.org:{port}"
    upload = fetch(f"{name}/p.png", (AllowedHost.parse(name),), 20_000)
    assert opened(upload.data).size == (64, 64)
    assert asked == ["pictures.example.org"] and _Files.hosts[-1] == f"pictures.example.org:{port}"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_public_addresses_count_as_public(address, public):
    assert is_public(ipaddress.ip_address(address)) == public


def test_a_broken_data_address_is_refused():
    for url in ("data:image/png;base64,###", "data:image/png,abc", "data:;base64", "data:image/png;base64," + "A" * 99):
        with pytest.raises(InputError, match=r"data: address|larger than"):
            fetch(url, (), 60)


# Paths, pickles, metadata


@pytest.mark.parametrize("name", ["../../etc/passwd", "..%2f..%2fetc", "0001/../../x", "%00", "a" * 300])
def test_no_name_from_outside_becomes_a_path(server, name):
    with server.client() as http:
        session = http.post("/v1/sessions").json()["id"]
        for path in (f"/v1/sessions/{name}", f"/v1/sessions/{session}/nodes/{name}/image", f"/files/{name}"):
            reply = http.get(path)
            assert reply.status_code in (400, 404, 405) and "root:" not in reply.text


def test_a_file_name_is_only_ever_a_name(server):
    reply = edit(server, png(picture()), name="../../../secret/place.png")
    data = base64.b64decode(reply.json()["data"][0]["b64_json"])
    assert b"place.png" in data and b"secret" not in data


def test_a_session_that_is_a_link_is_not_followed(server, tmp_path):
    with server.client() as http:
        session = http.post("/v1/sessions").json()["id"]
    (folder,) = _data_folder(server).glob(f"sessions/*/{session}")
    linked = folder.with_name("0" * 32)
    linked.symlink_to(folder)
    with server.client() as http:
        assert http.get(f"/v1/sessions/{linked.name}").status_code == 404


def _archive(change) -> bytes:
    """A ZIP file that says it is a session; `change` adds what is hostile about it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("session.json", '{"kind": "ace-session", "format_version": 1}')
        change(archive)
    return stream.getvalue()


def _link(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo("nodes/0001/image.png")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(member, "/etc/passwd")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda archive: archive.writestr("nodes/0001/image.png", bytes(10**8)), "unpacks to more"),
        (lambda archive: archive.writestr("../../evil.png", b"x"), "it holds"),
        (lambda archive: archive.writestr("/tmp/evil.png", b"x"), "it holds"),
        (lambda archive: [archive.writestr(f"nodes/{n:04d}/a.png", b"") for n in range(1, 1100)], "there is room for"),
        (_link, "no node.json"),
    ],
    ids=["bomb", "traversal", "absolute", "too many nodes", "link"],
)
def test_a_hostile_archive_adds_nothing_to_a_session(server, change, reason):
    with server.client() as http:
        session = f"/v1/sessions/{http.post('/v1/sessions').json()['id']}"
        reply = http.post(f"{session}/archive", content=_archive(change))
        assert refused(reply, 400, reason)
        assert http.get(session).json()["nodes"] == []
        assert refused(http.post(f"{session}/archive", content=b"PK no zip"), 400, "not a ZIP file")


def _data_folder(server: Running) -> Path:
    return server.data_folder


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("trap-sprung",)


def test_a_pickle_is_never_opened(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(edit(server, pickle.dumps(_Trap())), 400, "not a picture")
    assert not (tmp_path / "trap-sprung").exists()


def test_a_model_with_pickled_weights_is_refused(tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    (weights,) = (folder / "vae").glob("*.safetensors")
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_pipeline(find_model(str(folder)), device="cpu")


def test_results_and_errors_name_no_folder_of_the_server(server):
    made = edit(server, png(picture())).json()["data"][0]
    data = base64.b64decode(made["b64_json"])
    text = str(made["ace"])
    for place in (str(Path.home()), str(_data_folder(server)), str(Path(__file__).parents[2])):
        assert place.encode() not in data and place not in text
    with server.client() as http:
        for reply in (http.get("/v1/sessions/x"), http.get("/nothing"), http.post("/v1/images/edits", content=b"x")):
            assert not re.search(r"(/[a-z]+){3}\.py|Traceback|File \"", reply.text)


def test_prompts_and_file_names_stay_out_of_the_file_where_that_is_asked(server):
    told = edit(server, png(picture()), name="private.png")
    silent = edit(server, png(picture()), name="private.png", metadata="false", prompt="a secret wish")
    streamed = edit(server, png(picture()), name="private.png", metadata="false", stream="true")
    assert b"private.png" in base64.b64decode(told.json()["data"][0]["b64_json"])
    for encoded in (silent.json()["data"][0]["b64_json"], streamed.text.split('"b64_json": "')[1].split('"')[0]):
        data = base64.b64decode(encoded)
        assert opened(data).info == {} and b"private" not in data and b"secret" not in data


# Work


@pytest.mark.parametrize("fields", [{"steps": 1001}, {"n": 11}, {"steps": 10**9}, {"size": "99999x99999"}])
def test_work_beyond_all_bounds_is_refused(server, fields):
    with server.client() as http:
        assert http.post("/v1/images/generations", json={"prompt": "a", **fields}).status_code == 400


def test_a_dear_request_is_refused_by_its_estimated_cost(server):
    with server.client() as http:
        body = {"prompt": "a", "steps": 1000, "size": "128x128"}
        assert refused(http.post("/v1/images/generations", json=body), 400, "operations", "fewer steps")


def test_a_full_server_says_429_and_when_to_come_back_and_a_quota_is_per_key():
    limits = Limits(max_waiting=1, max_running=1)
    with running(limits, api_keys=(KEY, OTHER), pictures_per_minute=3) as server:
        gate = threading.Event()
        server.engine.submit([words(steps=4)], "x", num_previews=1, on_preview=lambda *_: gate.wait(120))
        wait_until(lambda: server.engine.num_waiting == 0)
        server.engine.submit([words()], "y")
        with server.client(KEY) as http:
            reply = http.post("/v1/images/generations", json={"prompt": "a"})
            assert refused(reply, 429, "busy") and int(reply.headers["retry-after"]) >= 1
        gate.set()
        wait_until(lambda: server.engine.num_running == 0)
        with server.client(KEY) as mine, server.client(OTHER) as theirs:
            body = {"prompt": "a", "steps": 1}
            assert [mine.post("/v1/images/generations", json=body).status_code for _ in range(3)] == [200] * 3
            spent = mine.post("/v1/images/generations", json=body)
            assert refused(spent, 429, "quota") and int(spent.headers["retry-after"]) >= 1
            assert theirs.post("/v1/images/generations", json=body).status_code == 200


def test_pictures_that_wait_are_counted_and_more_are_refused_until_they_are_done():
    side = picture().size[0]
    room_for = 4
    with running(Limits(max_running=1), max_held_bytes=room_for * side * side * 4 + 1) as server:
        gate = threading.Event()
        server.engine.submit([words()], "x", num_previews=1, on_preview=lambda *_: gate.wait(120))
        wait_until(lambda: server.engine.num_waiting == 0)
        asked = [threading.Thread(target=edit, args=(server, png(picture()))) for _ in range(room_for)]
        for thread in asked:
            thread.start()
        wait_until(lambda: server.engine.num_waiting == room_for)
        one_more = edit(server, png(picture()))
        assert refused(one_more, 429, "too many large pictures") and int(one_more.headers["retry-after"]) >= 1
        gate.set()
        for thread in asked:
            thread.join()
        assert edit(server, png(picture())).status_code == 200
        assert refused(edit(server, png(picture(2 * side, 2 * side))), 400, "too large together")


def test_a_client_that_goes_away_frees_its_place(keyless):
    host, port = keyless.url.removeprefix("http://").split(":")
    body = b'{"prompt": "a", "steps": 1000}'
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for stream in (b"", b', "stream": true, "partial_images": 3'):
        sent = body[:-1] + stream + b"}"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            wait_until(lambda: keyless.engine.num_running == 1)
        wait_until(lambda: keyless.engine.num_running == 0)
        assert keyless.engine.num_waiting == 0
