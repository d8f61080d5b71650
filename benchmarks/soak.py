"""Soak: a real server under load that is partly broken, impatient and hostile, until it has shown that it holds.

    python benchmarks/soak.py                              # until 2,000 requests and 30 minutes are both done
    python benchmarks/soak.py --seconds 60 --requests 0    # the short form
    python benchmarks/soak.py --seconds 86400 --restart-every 3600 --report soak.json    # a day

Closed loop with several clients, the smallest size, at most two steps. Of the requests 10 % are malformed, 10 % are
given up on the way (hung up, or cancelled by id), 5 % are attacks; the good ones are pictures from words, masked edits,
streams and conversations of two rounds. One conversation, the diary, goes on all the time: rounds are added from
anywhere in it, it is exported and looked at. With `--restart-every` the server is stopped so often, by turns by a
signal and by SIGKILL, and started again on the same data. It holds if

- the process never goes down by itself, logs no traceback, answers nothing with 5xx and ends in good order;
- every good request gets the picture that the pipeline itself makes of it, alone, in this process;
- every malformed or hostile one is refused, every one given up ends as cancelled (or was done before; lost only by a
  kill), nothing is left running at the end;
- nothing that was acknowledged is lost: every round of the diary is there after every restart, to the byte;
- the memory of the process is flat, its mean over the last fifth of a life within 5 % of that over the second fifth,
  and its open descriptors are, within 8; the disk holds no more than the diary and the ledger account for.

Prints what happened and writes it as JSON with `--report`; the exit code is 1 if it does not hold. Needs
`ace-allround[server]`, and Linux for memory and descriptors.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import platform
import random
import re
import socket
import stat
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from ace.conversation.chat import ChatSession
from ace.conversation.family import Loading
from ace.conversation.job import Settings
from ace.conversation.message import Message, open_message
from ace.conversation.run import make
from ace.conversation.session import Node, Session
from ace.families import find_family
from ace.server.images import Upload, open_mask, open_picture

ASKED = ("good", "malformed", "given up", "hostile")
KINDS, SEEDS = ("words", "edit", "stream", "talk"), range(4)
SIZE, STEPS = 16, 2  # px; of the model's own sizes the smallest
TOLERANCE = 2  # levels of 255: what float32 rounding among other neighbours may move
PROMPT, NEXT_PROMPT = "make it blue", "now make it red"
PATIENCE_S = 120  # for one answer, also on a slow machine that does other things
MEMORY_GROWTH = 0.05
SHORTEST_LIFE = 120  # looks at a process, a second apart, below which its growth says nothing
DESCRIPTOR_GROWTH = 8


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def photo() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((SIZE, SIZE))


def left_half() -> Image.Image:
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (0, 0, SIZE // 2, SIZE))
    return mask


def bomb() -> bytes:
    """A small file that claims to be 30,000 px square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def archive(name: str, data: bytes, mode: int = 0o644) -> bytes:
    """A ZIP file that says it is a session, with one hostile member."""
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("session.json", '{"kind": "ace-session", "format_version": 1}')
        file.writestr(member, data, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


PHOTO, MASK, BOMB = png(photo()), png(left_half()), bomb()
ARCHIVES = (
    archive("nodes/0001/image.png", bytes(10**8)),  # 100 kB that unpack to 100 MB
    archive("../../evil.png", PHOTO),
    archive("nodes/0001/image.png", b"/etc/passwd", stat.S_IFLNK | 0o777),
    b"PK\x03\x04 no archive",
)
MALFORMED: tuple[dict[str, Any], ...] = (
    {"json": {"prompt": ""}},
    {"json": {"prompt": "a", "size": "7x7"}},
    {"json": {"prompt": "a", "steps": -1}},
    {"json": {"prompt": "a", "nonsense": 1}},
    {"json": ["a"]},
    {"content": b"{", "headers": {"content-type": "application/json"}},
    {"content": b"[" * 5000, "headers": {"content-type": "application/json"}},
    {"content": b'{"a":0,' * 9000, "headers": {"content-type": "application/json"}},
)


def many_scans() -> bytes:
    """A small JPEG that would take minutes to decode."""
    stream = io.BytesIO()
    photo().resize((512, 512)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 10_000 + data[-2:]


SCANS = many_scans()


def answers_of_the_model() -> dict[tuple[str, int], np.ndarray]:
    """What every good request must be answered: made by the model in this process, one at a time."""
    family = find_family("ace-tiny")
    family.load(Loading(device="cpu"))
    found = {}
    for seed in SEEDS:
        settings = Settings(seed=seed, num_inference_steps=STEPS, size=(SIZE, SIZE))
        words = open_message(family, Message(PROMPT, settings))
        photo, mask = open_picture(Upload(PHOTO), SIZE * SIZE), open_mask(Upload(MASK), SIZE * SIZE)
        edit = open_message(family, Message(PROMPT, settings, photo=photo, mask=mask))
        for kind, job in (("words", words), ("stream", words), ("edit", edit)):
            found[kind, seed] = np.asarray(make(family, [job])[0].image.convert("RGB"))
        with tempfile.TemporaryDirectory() as folder:
            chat = ChatSession(Session.create(Path(folder) / "talk"), family)
            for prompt, start in ((PROMPT, None), (NEXT_PROMPT, "0001")):
                *_, node = chat.ask(Message(prompt, settings), start, previews=False)
            assert isinstance(node, Node)
            found["talk", seed] = np.asarray(chat.session.answer(node.id).image)
    return found


class Soak:
    """What is asked of the server, and what came of it."""

    def __init__(self, url: str, expected: dict[tuple[str, int], np.ndarray]) -> None:
        self.url, self.expected = url, expected
        self.address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.latencies: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.diary: str | None = None
        self.written: dict[str, str] = {}  # the diary's nodes → hashes of their images
        self.num_restarts = self.num_kills = 0
        self._lock = threading.Lock()

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    @property
    def num_requests(self) -> int:
        """How many have been made, of all kinds."""
        return sum(self.counts[kind] for kind in ASKED)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def fault(self, what: str) -> None:
        with self._lock:
            self.faults.append(what)

    def one(self, http: httpx2.Client, draw: random.Random) -> None:
        """The next request of a client, of whatever kind its generator draws."""
        share = draw.random()
        kind = "malformed" if share < 0.1 else "given up" if share < 0.2 else "hostile" if share < 0.25 else "good"
        ask = {"malformed": self.malformed, "given up": self.given_up, "hostile": self.hostile, "good": self.good}[kind]
        restarts = self.num_restarts
        try:
            ask(http, draw)
        except (httpx2.HTTPError, OSError, IndexError) as error:
            if self.num_restarts == restarts:
                time.sleep(1)  # a restart that has only begun
            if self.num_restarts == restarts:
                self.fault(f"a {kind} request lost its connection: {error!r}")
            self.count("cut off by a restart")
        self.count(kind)

    # Good ones

    def good(self, http: httpx2.Client, draw: random.Random) -> None:
        kind, seed = draw.choice(KINDS), draw.choice(SEEDS)
        began, restarts = time.perf_counter(), self.num_restarts
        status, data = getattr(self, kind)(http, seed)
        if status == 429:
            self.count("good, told to wait")
            time.sleep(1)
            return
        with self._lock:
            self.latencies[kind].append(time.perf_counter() - began)
        if data is None and self.num_restarts > restarts:
            return
        if data is None:
            self.fault(f"a good request ({kind}) was answered {status}")
            return
        difference = int(np.abs(pixels(data).astype(int) - self.expected[kind, seed].astype(int)).max())
        if difference > TOLERANCE:
            self.fault(f"a good request ({kind}) got another picture: {difference} levels")

    def fields(self, seed: int, prompt: str = PROMPT) -> dict[str, object]:
        return {"prompt": prompt, "size": f"{SIZE}x{SIZE}", "steps": STEPS, "seed": seed}

    def words(self, http: httpx2.Client, seed: int) -> tuple[int, str | None]:
        """(status, picture as base64); the other kinds likewise."""
        reply = http.post("/v1/images/generations", json=self.fields(seed))
        return reply.status_code, reply.json()["data"][0]["b64_json"] if reply.status_code == 200 else None

    def edit(self, http: httpx2.Client, seed: int) -> tuple[int, str | None]:
        form = {name: str(value) for name, value in self.fields(seed).items()}
        files = {"image": ("p.png", PHOTO), "mask": ("m.png", MASK)}
        reply = http.post("/v1/images/edits", data=form, files=files)
        return reply.status_code, reply.json()["data"][0]["b64_json"] if reply.status_code == 200 else None

    def stream(self, http: httpx2.Client, seed: int) -> tuple[int, str | None]:
        body = {**self.fields(seed), "stream": True, "partial_images": 1}
        with http.stream("POST", "/v1/images/generations", json=body) as reply:
            lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
        return reply.status_code, json.loads(lines[-1][6:]).get("b64_json") if reply.status_code == 200 else None

    def talk(self, http: httpx2.Client, seed: int) -> tuple[int, str | None]:
        reply = http.post("/v1/sessions")
        if reply.status_code != 201:
            return reply.status_code, None
        session = f"/v1/sessions/{reply.json()['id']}"
        for prompt in (PROMPT, NEXT_PROMPT):
            reply = http.post(f"{session}/turns", json=self.fields(seed, prompt))
            if reply.status_code != 200:
                break
        http.delete(session)
        return reply.status_code, reply.json()["nodes"][0]["b64_json"] if reply.status_code == 200 else None

    # Bad ones

    def malformed(self, http: httpx2.Client, draw: random.Random) -> None:
        self.refused(http.post("/v1/images/generations", **draw.choice(MALFORMED)))

    def hostile(self, http: httpx2.Client, draw: random.Random) -> None:
        def edit(data: bytes) -> httpx2.Response:
            return http.post("/v1/images/edits", data={"prompt": "a"}, files={"image": ("p.png", data)})

        inside = {"prompt": "a", "images": [{"image_url": "http://169.254.169.254/"}]}
        attacks = (
            lambda: edit(BOMB),
            lambda: edit(SCANS),
            self.silent,
            lambda: http.get("/v1/models", headers={"origin": "http://["}),
            lambda: edit(b"\x80\x04."),
            lambda: http.get("/v1/models", headers={"host": "evil.example"}),
            lambda: http.get("/v1/models", headers={"origin": "https://evil.example"}),
            lambda: http.get("/v1/sessions/..%2f..%2fetc%2fpasswd"),
            lambda: http.post("/v1/images/generations", json={"prompt": "a", "steps": 10**9, "n": 10**6}),
            lambda: http.post("/v1/images/edits", json=inside),
            self.lie,
            lambda: self.smuggle(http, draw.choice(ARCHIVES)),
        )
        self.refused(draw.choice(attacks)())

    def lie(self) -> httpx2.Response:
        """Announce far more than is allowed, and send nothing of it."""
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n"
        with socket.create_connection(self.address, timeout=PATIENCE_S) as connection:
            connection.sendall(head.encode())
            return httpx2.Response(int(connection.recv(1000).split(b" ")[1]))

    def silent(self) -> httpx2.Response:
        """Connect, say half a head, go away."""
        with socket.create_connection(self.address, timeout=PATIENCE_S) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        return httpx2.Response(499)

    def smuggle(self, http: httpx2.Client, data: bytes) -> httpx2.Response:
        """Add a hostile archive to a session, which must stay empty."""
        session = f"/v1/sessions/{http.post('/v1/sessions').json()['id']}"
        reply = http.post(f"{session}/archive", content=data)
        if http.get(session).json().get("nodes"):
            self.fault("a hostile archive added something to a session")
        http.delete(session)
        return reply

    def refused(self, reply: httpx2.Response) -> None:
        if not 400 <= reply.status_code < 500:
            self.fault(f"a bad request was answered {reply.status_code}")

    # Impatient ones

    def given_up(self, http: httpx2.Client, draw: random.Random) -> None:
        """Ask, wait a little, then go away or cancel by id; later see how it ended."""
        name, kills = f"given-up-{draw.getrandbits(64):x}", self.num_kills
        body = json.dumps({**self.fields(draw.choice(SEEDS)), "stream": draw.random() < 0.5}).encode()
        head = (
            "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"X-Client-Request-Id: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(self.address, timeout=PATIENCE_S) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(draw.uniform(0, 0.15))
            if draw.random() < 0.5:
                http.delete(f"/v1/requests/{name}")  # 404 if it is done already
        until = time.monotonic() + PATIENCE_S
        while (status := self.status(http, name)) in ("waiting", "running") and time.monotonic() < until:
            time.sleep(0.05)
        fine = ("cancelled", "done", "never accepted", *(("lost", "failed") if self.num_kills > kills else ()))
        if status not in (*fine, *(("failed",) if self.num_restarts else ())):
            self.fault(f"a request that was given up is {status}")
        self.count(f"given up, {status}")

    # The diary

    def write_diary(self, http: httpx2.Client, draw: random.Random) -> None:
        """Add a round to the diary, from anywhere in it, and remember what was acknowledged."""
        if self.diary is None:
            self.diary = http.post("/v1/sessions").json()["id"]
        session = f"/v1/sessions/{self.diary}"
        parent = draw.choice([*self.written, "latest", "none"])
        body = {**self.fields(draw.choice(SEEDS), draw.choice((PROMPT, NEXT_PROMPT))), "parent": parent}
        reply = http.post(f"{session}/turns", json=body)
        if reply.status_code == 200:
            node = reply.json()["nodes"][0]["id"]
            self.written[node] = hashlib.sha256(http.get(f"{session}/nodes/{node}/image").content).hexdigest()
        elif reply.status_code not in (429, 503):
            self.fault(f"a round of the diary was answered {reply.status_code}: {reply.text[:100]}")
        if draw.random() < 0.1 and http.get(f"{session}/archive").status_code != 200:
            self.fault("the diary cannot be exported")

    def read_diary(self, http: httpx2.Client) -> None:
        """See that all of it is there, to the byte."""
        for node, sha256 in self.written.items():
            data = http.get(f"/v1/sessions/{self.diary}/nodes/{node}/image").content
            if hashlib.sha256(data).hexdigest() != sha256:
                self.fault(f"node {node} of the diary was lost or changed")

    def status(self, http: httpx2.Client, name: str) -> str:
        reply = http.get(f"/v1/requests/{name}")
        return "never accepted" if reply.status_code == 404 else reply.json()["status"]


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


class Server:
    """`ace serve` in a process of its own, on the same port and data after every restart. lives: what was seen of each
    of its processes, a list of (memory in MB, descriptors) a second apart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.lives: list[list[tuple[float, int]]] = []
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        data, port = str(self.folder / "data"), str(self.port)
        command = [sys.executable, "-m", "ace", "serve", "--port", port, "--device", "cpu", "--data", data]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        first_line = self.process.stdout.readline()
        if " at http://" not in first_line:
            sys.exit(f"the server did not start: {self.log.read_text()}")
        self.url = first_line.split(" at ")[1].split("/v1")[0]
        self.port = int(self.url.rsplit(":", 1)[1])
        self.lives.append([])

    def look(self) -> None:
        """Note how much the process holds."""
        if self.process.poll() is None:
            place = Path(f"/proc/{self.process.pid}")
            self.lives[-1].append((memory_mb(self.process.pid), len(list((place / "fd").iterdir()))))

    def end(self, kill: bool = False) -> int:
        """Stop it; its exit code."""
        (self.process.kill if kill else self.process.terminate)()
        return self.process.wait(timeout=PATIENCE_S)

    def disk_mb(self) -> float:
        """Of all that it has written."""
        return sum(path.stat().st_size for path in (self.folder / "data").rglob("*") if path.is_file()) / 1e6


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a client waits between requests")
    parser.add_argument("--restart-every", type=float, default=0.0, help="seconds between restarts; 0 = none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    expected = answers_of_the_model()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            run = Soak(server.url, expected)
            seconds = soak(server, run, arguments)
            end(server, run)
            told = report(server, run, seconds, arguments)
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(told, indent=1) + "\n")
    for fault, count in Counter(run.faults).most_common(10):
        print(f"fault, {count} times: {fault}")
    print("DOES NOT HOLD" if run.faults else "holds")
    sys.exit(1 if run.faults else 0)


def soak(server: Server, run: Soak, arguments: argparse.Namespace) -> float:
    """The closed loop; the seconds that it took."""
    began, over = time.monotonic(), threading.Event()

    def done() -> bool:
        enough = run.num_requests >= arguments.requests and time.monotonic() - began >= arguments.seconds
        return over.is_set() or enough

    def client(number: int) -> None:
        draw = random.Random(f"{arguments.seed} {number}")
        with run.client() as http:
            while not done():
                run.one(http, draw)
                time.sleep(arguments.pause)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(arguments.clients)]
    for thread in threads:
        thread.start()
    draw, restarted_at, wrote_at = random.Random(arguments.seed), began, began
    with run.client() as http:
        while any(thread.is_alive() for thread in threads):
            if server.process.poll() is not None:
                run.fault(f"the process went down ({server.process.returncode})")
                over.set()
            server.look()
            now = time.monotonic()
            if not done() and now - wrote_at > 10:
                try:
                    run.write_diary(http, draw)
                except (httpx2.HTTPError, OSError) as error:
                    run.fault(f"the diary lost its connection: {error!r}")
                wrote_at = time.monotonic()
            if not done() and arguments.restart_every and now - restarted_at > arguments.restart_every:
                restart(server, run, http)
                restarted_at = time.monotonic()
            time.sleep(min(1.0, arguments.seconds / 100))
        if not over.is_set():
            run.read_diary(http)
    return time.monotonic() - began


def restart(server: Server, run: Soak, http: httpx2.Client) -> None:
    """End the process, by turns by a signal and by SIGKILL, and start it again on the same data."""
    kill = run.num_restarts % 2 == 1
    run.num_kills += kill
    run.num_restarts += 1
    code = server.end(kill)
    if not kill and code != 0:
        run.fault(f"after a signal to stop the process ended with {code}")
    server.start()
    run.read_diary(http)


def report(server: Server, run: Soak, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the figures and give them back; memory or descriptors that have grown are a fault."""
    lives = []
    for life in server.lives:
        if len(life) < 10:
            continue
        fifth = max(1, len(life) // 5)
        early, late = life[fifth : 2 * fifth], life[-fifth:]
        memory = [statistics.mean(one for one, _ in part) for part in (early, late)]
        descriptors = [statistics.median(count for _, count in part) for part in (early, late)]
        growth = memory[1] / memory[0] - 1
        lives.append({"looks": len(life), "memory_mb": memory, "growth": growth, "descriptors": descriptors})
        if len(life) >= SHORTEST_LIFE and growth > MEMORY_GROWTH:
            run.fault(f"the memory has grown by {growth:.1%} in {len(life)} s")
        if len(life) >= SHORTEST_LIFE and descriptors[1] > descriptors[0] + DESCRIPTOR_GROWTH:
            run.fault(f"open descriptors have grown from {descriptors[0]:g} to {descriptors[1]:g}")
    asked = {kind: run.counts[kind] for kind in ASKED}
    more = {kind: count for kind, count in sorted(run.counts.items()) if kind not in asked}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {arguments.clients} clients")
    print(f"{run.num_requests} requests in {seconds:.0f} s: {asked}, of them {more}")
    latencies = {}
    for kind, found in run.latencies.items():
        if found:
            ordered = sorted(found)
            latencies[kind] = {"p50_s": ordered[len(ordered) // 2], "p99_s": ordered[int(0.99 * len(ordered))]}
            print(f"{kind}: p50 {latencies[kind]['p50_s']:.3f} s, p99 {latencies[kind]['p99_s']:.3f} s")
    for life in lives:
        (before, after), (few, many) = life["memory_mb"], life["descriptors"]
        print(
            f"a process looked at {life['looks']} times: {before:.0f} MB in the second fifth, {after:.0f} MB in the "
            f"last ({life['growth']:+.1%}); descriptors {few:g}, {many:g}"
        )
    diary = f"{len(run.written)} rounds of the diary"
    print(
        f"{run.num_restarts} restarts, {run.num_kills} of them by SIGKILL; {diary}; {server.disk_mb():.1f} MB of disk"
    )
    return {
        "seconds": seconds,
        "requests": asked | more,
        "latencies": latencies,
        "processes": lives,
        "restarts": run.num_restarts,
        "kills": run.num_kills,
        "diary": len(run.written),
        "disk_mb": server.disk_mb(),
        "faults": run.faults,
    }


def end(server: Server, run: Soak) -> None:
    """See that nothing is left running, that no 5xx was answered, and that a signal ends the process in good order."""
    if server.process.poll() is not None:
        return
    with run.client() as http:
        until = time.monotonic() + PATIENCE_S
        while "ace_pictures_running 0.0" not in (metrics := http.get("/metrics").text) and time.monotonic() < until:
            time.sleep(0.2)
    if "ace_pictures_running 0.0" not in metrics:
        run.fault("pictures are still running though nobody waits for them")
    for line in re.findall(r'^ace_requests_total\{.*status="5.*$', metrics, re.MULTILINE):
        run.fault(line)
    if (code := server.end()) != 0:
        run.fault(f"after a signal to stop the process ended with {code}")
    if "Traceback" in (text := server.log.read_text()):
        run.fault(f"a traceback in the log: {text[-300:]}")


if __name__ == "__main__":
    main()
