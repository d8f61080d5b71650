"""Soak: a real server under load that is partly broken, impatient and hostile, until it has shown that it holds.

    python benchmarks/soak.py                              # until 2,000 requests and 30 minutes are both done
    python benchmarks/soak.py --seconds 60 --requests 0    # the short form

Closed loop with several clients, the smallest size, at most two steps. Of the requests 10 % are malformed, 10 % are
given up on the way (hung up, or cancelled by id), 5 % are attacks; the good ones are pictures from words, masked edits,
streams and conversations of two rounds. It holds if

- the process never goes down, logs no traceback, answers nothing with 5xx and ends in good order;
- every good request gets the picture that the pipeline itself makes of it, alone, in this process;
- every malformed or hostile one is refused, every one given up ends as cancelled (or was done before), nothing is left
  running at the end;
- the memory of the process is flat: its mean over the last fifth is within 5 % of that over the second fifth.

Prints what happened; the exit code is 1 if it does not hold. Needs `ace-allround[server]`, and Linux for the memory.
"""

from __future__ import annotations

import argparse
import base64
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

from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.conversation.chat import ChatSession, Message
from ace.conversation.edit import Job, Settings, make
from ace.conversation.session import Node, Session
from ace.server.images import Upload
from ace.server.jobs import make_job
from ace.weights.sources import find_model, load_pipeline

ASKED = ("good", "malformed", "given up", "hostile")
KINDS, SEEDS = ("words", "edit", "stream", "talk"), range(4)
SIZE, STEPS = 16, 2  # px; of the model's own sizes the smallest
TOLERANCE = 2  # levels of 255: what float32 rounding among other neighbours may move
PROMPT, NEXT_PROMPT = "make it blue", "now make it red"
PATIENCE_S = 120  # for one answer, also on a slow machine that does other things
MEMORY_GROWTH = 0.05


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
)


def answers_of_the_pipeline() -> dict[tuple[str, int], np.ndarray]:
    """What every good request must be answered: made by the pipeline in this process, one at a time."""
    model = find_model("ace-tiny")
    pipeline = load_pipeline(model, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    found = {}
    for seed in SEEDS:
        settings = Settings(seed=seed, num_inference_steps=STEPS, size=(SIZE, SIZE))
        words = Job(LongContextConditionUnit(ConditionUnit(PROMPT)), settings)
        edit = make_job(PROMPT, settings, [Upload(PHOTO)], Upload(MASK), SIZE * SIZE)
        for kind, job in (("words", words), ("stream", words), ("edit", edit)):
            found[kind, seed] = np.asarray(make(pipeline, model, [job])[0].image.convert("RGB"))
        with tempfile.TemporaryDirectory() as folder:
            chat = ChatSession(Session.create(Path(folder) / "talk"), pipeline, model)
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
        self.latencies: list[float] = []
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
        try:
            ask(http, draw)
        except (httpx2.HTTPError, OSError) as error:
            self.fault(f"a {kind} request lost its connection: {error!r}")
        self.count(kind)

    # Good ones

    def good(self, http: httpx2.Client, draw: random.Random) -> None:
        kind, seed = draw.choice(KINDS), draw.choice(SEEDS)
        began = time.perf_counter()
        status, data = getattr(self, kind)(http, seed)
        if status == 429:
            self.count("good, told to wait")
            time.sleep(1)
            return
        with self._lock:
            self.latencies.append(time.perf_counter() - began)
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

    def smuggle(self, http: httpx2.Client, data: bytes) -> httpx2.Response:
        """Add a hostile archive to a session, which must stay empty."""
        session = f"/v1/sessions/{http.post('/v1/sessions').json()['id']}"
        reply = http.post(f"{session}/archive", content=data)
        if http.get(session).json()["nodes"]:
            self.fault("a hostile archive added something to a session")
        http.delete(session)
        return reply

    def refused(self, reply: httpx2.Response) -> None:
        if not 400 <= reply.status_code < 500:
            self.fault(f"a bad request was answered {reply.status_code}")

    # Impatient ones

    def given_up(self, http: httpx2.Client, draw: random.Random) -> None:
        """Ask, wait a little, then go away or cancel by id; later see how it ended."""
        name = f"given-up-{draw.getrandbits(64):x}"
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
        if status not in ("cancelled", "done", "never accepted"):
            self.fault(f"a request that was given up is {status}")
        self.count(f"given up, {status}")

    def status(self, http: httpx2.Client, name: str) -> str:
        reply = http.get(f"/v1/requests/{name}")
        return "never accepted" if reply.status_code == 404 else reply.json()["status"]


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


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
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    expected = answers_of_the_pipeline()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        data = str(Path(folder) / "data")
        command = [sys.executable, "-m", "ace", "serve", "--port", "0", "--device", "cpu", "--data", data]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            first_line = server.stdout.readline()
            if " at http://" not in first_line:
                sys.exit(f"the server did not start: {Path(log.name).read_text()}")
            run = Soak(first_line.split(" at ")[1].split("/v1")[0], expected)
            soak(server, run, arguments)
            end(server, run, Path(log.name))
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    for fault, count in Counter(run.faults).most_common(10):
        print(f"fault, {count} times: {fault}")
    print("DOES NOT HOLD" if run.faults else "holds")
    sys.exit(1 if run.faults else 0)


def soak(server: subprocess.Popen, run: Soak, arguments: argparse.Namespace) -> None:
    """The closed loop, and what came of it on the screen."""
    began, memory = time.monotonic(), []

    def client(number: int) -> None:
        draw = random.Random(f"{arguments.seed} {number}")
        with run.client() as http:
            while server.poll() is None and not (
                run.num_requests >= arguments.requests and time.monotonic() - began >= arguments.seconds
            ):
                run.one(http, draw)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(arguments.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if server.poll() is None:
            memory.append(memory_mb(server.pid))
        time.sleep(min(1.0, arguments.seconds / 100))
    report(run, time.monotonic() - began, memory, arguments.clients)


def report(run: Soak, seconds: float, memory: list[float], num_clients: int) -> None:
    """Print the figures; memory that has grown is a fault."""
    fifth = max(1, len(memory) // 5)
    early, late = statistics.mean(memory[fifth : 2 * fifth] or memory), statistics.mean(memory[-fifth:])
    growth = late / early - 1
    if growth > MEMORY_GROWTH:
        run.fault(f"the memory has grown by {growth:.1%}")
    asked = {kind: run.counts[kind] for kind in ASKED}
    more = {kind: count for kind, count in sorted(run.counts.items()) if kind not in asked}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {num_clients} clients")
    print(f"{run.num_requests} requests in {seconds:.0f} s: {asked}, of them {more}")
    if run.latencies:
        ordered = sorted(run.latencies)
        print(f"good ones: p50 {ordered[len(ordered) // 2]:.3f} s, p99 {ordered[int(0.99 * len(ordered))]:.3f} s")
    change = f"{early:.0f} MB in the second fifth, {late:.0f} MB in the last ({growth:+.1%})"
    print(f"memory {change}, at most {max(memory):.0f} MB")


def end(server: subprocess.Popen, run: Soak, log: Path) -> None:
    """See that nothing is left running, that no 5xx was answered, and that a signal ends the process in good order."""
    if server.poll() is not None:
        run.fault(f"the process went down ({server.returncode})")
        return
    with run.client() as http:
        until = time.monotonic() + PATIENCE_S
        while "ace_pictures_running 0.0" not in (metrics := http.get("/metrics").text) and time.monotonic() < until:
            time.sleep(0.2)
    if "ace_pictures_running 0.0" not in metrics:
        run.fault("pictures are still running though nobody waits for them")
    for line in re.findall(r'^ace_requests_total\{.*status="5.*$', metrics, re.MULTILINE):
        run.fault(line)
    server.terminate()
    if (code := server.wait(timeout=PATIENCE_S)) != 0:
        run.fault(f"after a signal to stop the process ended with {code}")
    if "Traceback" in (text := log.read_text()):
        run.fault(f"a traceback in the log: {text[-300:]}")


if __name__ == "__main__":
    main()
