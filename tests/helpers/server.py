"""A web server on this computer, with the faults of real ones."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves bytes.

    Attributes:
        files: By path.
        breaks_after: If set, how many bytes of each answer arrive.
        with_ranges: Whether a part of a file can be asked for.
        requests: Each path, and the first byte that was asked for.
    """

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks_after: int | None = None
        self.with_ranges = True
        self.requests: list[tuple[str, int]] = []

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        start = int(re.sub(r'\D', '', self.headers.get('Range', '0')))
        self.server.requests.append((self.path, start))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        if start and start >= len(content) and self.server.with_ranges:
            return self.send_error(416)
        if start and self.server.with_ranges:
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
            content = content[start:]
        else:
            self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.breaks_after])

    def log_message(self, *args):
        pass


@contextmanager
def running_server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
