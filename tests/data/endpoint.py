"""A real HTTP server that speaks as much of OpenAI's chat completions as the tests need."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Seen:
    """What the server was asked, and where it is."""

    url: str
    bodies: list[dict] = field(default_factory=list)


@contextmanager
def chat_server(answer: Callable[[dict, int], tuple[int, str | bytes]]) -> Iterator[Seen]:
    """Serve `answer(body, number of the request) -> (status, text)` for as long as the block runs.

    Bytes in place of the text are the whole reply."""
    seen = Seen("")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.bodies.append(body)
                number = len(seen.bodies)
            status, text = answer(body, number)
            told = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"total_tokens": 10}}
            data = text if isinstance(text, bytes) else json.dumps(told).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{seen.url}/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
