"""A hub of one repository on 127.0.0.1: python tests/stand_in_hub.py FOLDER OWNER/NAME [FILE THAT STALLS]

Prints its port, then a line per file that is asked for."""

# ruff: noqa: T201
import http.server
import json
import sys
import time
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT, HUB_ID = Path(sys.argv[1]), sys.argv[2]
STALLED = sys.argv[3] if len(sys.argv) > 3 else None
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks for: the list of files, their sizes, and ranges of them."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        prefix = f"/{HUB_ID}/resolve/"
        headers, start = {"Content-Type": "application/json"}, 0
        if path.startswith(f"/api/models/{HUB_ID}/tree/"):
            entries = [{"type": "file", "path": f, "size": (ROOT / f).stat().st_size, "oid": "0" * 40} for f in FILES]
            content = json.dumps(entries).encode()
        elif path.startswith(f"/api/models/{HUB_ID}"):
            siblings = [{"rfilename": file} for file in FILES]
            content = json.dumps({"id": HUB_ID, "modelId": HUB_ID, "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(prefix):
            name = path[len(prefix) :].split("/", 1)[1]
            content = (ROOT / name).read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name.replace("/", "-")}"', "Accept-Ranges": "bytes"}
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            if body:
                print("GET", name, start, flush=True)
                if name == STALLED and not start:  # a line that dies
                    self.head(200, headers, len(content))
                    self.wfile.write(content[: len(content) * 2 // 3])
                    self.wfile.flush()
                    print("STALLED", flush=True)
                    time.sleep(600)
        else:
            self.head(404, {"X-Error-Code": "RepoNotFound"}, 0)
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206 if start else 200, headers, len(content) - start)
        if body:
            self.wfile.write(content[start:])

    def head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_address[1], flush=True)
server.serve_forever()
