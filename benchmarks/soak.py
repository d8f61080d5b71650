"""Soak: a real server under load that is partly broken, impatient and hostile, until it has shown that it holds.

    python benchmarks/soak.py                              # 2,000 requests and 30 minutes, whichever takes longer
    python benchmarks/soak.py --seconds 60 --requests 0    # the short form

Closed loop with several clients, the smallest size, at most two steps. Of the requests 10 % are malformed, 10 % are
given up half way, 5 % are attacks. It holds if the process never goes down, every good request gets the very picture
that it gets alone, every bad one is refused and nobody else notices, and the memory of the process is flat: its mean
over the last fifth is within 5 % of that over the second fifth. Prints what happened; the exit code is 1 if it does not
hold. Needs `ace-allround[server]`, and Linux for the memory.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

SEEDS = range(4)
SIZE = 16  # px
TOLERANCE = 2  # levels of 255: what float32 rounding among other neighbours may move


def png(width: int = SIZE, height: int = SIZE) -> bytes:
    stream = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(values).resize((width, height)).save(stream, "PNG")
    return stream.getvalue()


def bomb() -> bytes:
    """A small file that claims to be 30,000 px square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


PHOTO, BOMB = png(), bomb()


class Soak:
    """What is asked of the server, and what came of it."""

    def __init__(self, url: str) -> None:
        self.url, self.counts, self.faults = url, Counter(), []
        self.latencies: list[float] = []
        self.expected: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def fault(self, what: str) -> None:
        with self._lock:
            self.faults.append(what)

    def good(self, http: httpx2.Client, draw: random.Random) -> None:
        kind, seed = draw.choice(("words", "edit", "stream")), draw.choice(SEEDS)
        began = time.perf_counter()
        reply, data = self.ask(http, kind, seed)
        if reply == 429:
            with self._lock:
                self.counts["good, told to wait"] += 1
            time.sleep(1)
            return
        with self._lock:
            self.latencies.append(time.perf_counter() - began)
        if data is None:
            self.fault(f"a good request ({kind}) was answered {reply}")
            return
        difference = int(np.abs(data.astype(int) - self.expected[kind, seed].astype(int)).max())
        if difference > TOLERANCE:
            self.fault(f"a good request ({kind}) got another picture: {difference} levels")

    def ask(self, http: httpx2.Client, kind: str, seed: int) -> tuple[int, np.ndarray | None]:
        """(status, pixels)."""
        fields = {"prompt": "make it blue", "size": f"{SIZE}x{SIZE}", "steps": 2, "seed": seed}
        if kind == "edit":
            form = {name: str(value) for name, value in fields.items()}
            reply = http.post("/v1/images/edits", data=form, files={"image": ("p.png", PHOTO)})
        elif kind == "stream":
            body = {**fields, "stream": True, "partial_images": 1}
            with http.stream("POST", "/v1/images/generations", json=body) as reply:
                lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
            if reply.status_code != 200:
                return reply.status_code, None
            return 200, pixels(json.loads(lines[-1][6:])["b64_json"])
        else:
            reply = http.post("/v1/images/generations", json=fields)
        if reply.status_code != 200:
            return reply.status_code, None
        return 200, pixels(reply.json()["data"][0]["b64_json"])

    def malformed(self, http: httpx2.Client, draw: random.Random) -> None:
        wrong = [
            {"json": {"prompt": ""}},
            {"json": {"prompt": "a", "size": "7x7"}},
            {"json": {"prompt": "a", "steps": -1}},
            {"json": {"prompt": "a", "nonsense": 1}},
            {"json": ["a"]},
            {"content": b"{", "headers": {"content-type": "application/json"}},
        ]
        self.refused(http.post("/v1/images/generations", **draw.choice(wrong)))

    def hostile(self, http: httpx2.Client, draw: random.Random) -> None:
        attacks = [
            lambda: http.post("/v1/images/edits", data={"prompt": "a"}, files={"image": ("p.png", BOMB)}),
            lambda: http.post("/v1/images/edits", data={"prompt": "a"}, files={"image": ("p.png", b"\x80\x04.")}),
            lambda: http.get("/v1/models", headers={"host": "evil.example"}),
            lambda: http.get("/v1/models", headers={"origin": "https://evil.example"}),
            lambda: http.get("/v1/sessions/..%2f..%2fetc%2fpasswd"),
            lambda: http.post("/v1/images/generations", json={"prompt": "a", "steps": 10**9, "n": 10**6}),
            self.lie,
            lambda: http.post(
                "/v1/images/edits", json={"prompt": "a", "images": [{"image_url": "http://169.254.169.254/"}]}
            ),
        ]
        self.refused(draw.choice(attacks)())

    def lie(self) -> httpx2.Response:
        """Announce far more than is allowed, and send nothing of it."""
        host, port = self.url.removeprefix("http://").split(":")
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            connection.sendall(head.encode())
            return httpx2.Response(int(connection.recv(1000).split(b" ")[1]))

    def refused(self, reply: httpx2.Response) -> None:
        if not 400 <= reply.status_code < 500:
            self.fault(f"a bad request was answered {reply.status_code}")

    def given_up(self, draw: random.Random) -> None:
        """Ask for long work, wait a little, go away."""
        host, port = self.url.removeprefix("http://").split(":")
        body = json.dumps(
            {"prompt": "a", "size": f"{SIZE}x{SIZE}", "steps": 500, "stream": draw.random() < 0.5}
        ).encode()
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(draw.uniform(0, 0.3))

    def one(self, http: httpx2.Client, draw: random.Random) -> None:
        share = draw.random()
        kind = "malformed" if share < 0.1 else "given up" if share < 0.2 else "hostile" if share < 0.25 else "good"
        try:
            if kind == "given up":
                self.given_up(draw)
            else:
                {"malformed": self.malformed, "hostile": self.hostile, "good": self.good}[kind](http, draw)
        except (httpx2.HTTPError, OSError) as error:
            self.fault(f"a {kind} request lost its connection: {error!r}")
        with self._lock:
            self.counts[kind] += 1


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
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "ace", "serve", "--port", "0", "--device", "cpu", "--data", data]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split("/v1")[0]
            holds = soak(server, url, arguments)
            server.terminate()
            holds = server.wait(timeout=90) == 0 and holds
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    print("holds" if holds else "DOES NOT HOLD")
    sys.exit(0 if holds else 1)


def soak(server: subprocess.Popen, url: str, arguments: argparse.Namespace) -> bool:
    run = Soak(url)
    with httpx2.Client(base_url=url, timeout=120, trust_env=False) as http:
        for kind in ("words", "edit", "stream"):
            for seed in SEEDS:
                status, alone = run.ask(http, kind, seed)
                assert alone is not None, f"the very first request was answered {status}"
                run.expected[kind, seed] = alone
    began, memory = time.monotonic(), []

    def over() -> bool:
        enough = sum(run.counts.values()) >= arguments.requests and time.monotonic() - began >= arguments.seconds
        return enough or server.poll() is not None

    def client(number: int) -> None:
        draw = random.Random(f"{arguments.seed} {number}")
        with httpx2.Client(base_url=url, timeout=120, trust_env=False) as http:
            while not over():
                run.one(http, draw)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(arguments.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if server.poll() is None:
            memory.append(memory_mb(server.pid))
        time.sleep(min(1.0, arguments.seconds / 100))
    seconds = time.monotonic() - began
    alive = server.poll() is None
    fifth = max(1, len(memory) // 5)
    early, late = statistics.mean(memory[fifth : 2 * fifth] or memory), statistics.mean(memory[-fifth:])
    growth = late / early - 1
    with httpx2.Client(base_url=url, timeout=120, trust_env=False) as http:
        while alive and http.get("/metrics").text.find("ace_pictures_running 0.0") < 0:
            time.sleep(0.2)  # what was given up has left
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {arguments.clients} clients")
    print(f"{sum(run.counts.values())} requests in {seconds:.0f} s: {dict(sorted(run.counts.items()))}")
    if run.latencies:
        ordered = sorted(run.latencies)
        print(f"good ones: p50 {ordered[len(ordered) // 2]:.3f} s, p99 {ordered[int(0.99 * len(ordered))]:.3f} s")
    change = f"{early:.0f} MB in the second fifth, {late:.0f} MB in the last ({growth:+.1%})"
    print(f"memory {change}, at most {max(memory):.0f} MB")
    for fault, count in Counter(run.faults).most_common(10):
        print(f"fault, {count} times: {fault}")
    return alive and not run.faults and growth <= 0.05


if __name__ == "__main__":
    main()
