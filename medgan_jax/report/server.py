"""The report as a live page, on this machine alone.

It answers to `/`, the page, and `/version`, and to nothing else; no file of the disk can be asked for.
"""

import contextlib
import hashlib
import http.server
import math
import sys
import threading
import time
from http import HTTPStatus

from medgan_jax.errors import UserError, reason_of
from medgan_jax.report.page import REFRESH_SECONDS, render
from medgan_jax.report.record import read_record, sources
from medgan_jax.workdir import Workdir

_ADDRESS = "127.0.0.1"  # no other machine can reach it
_NAMES = ("localhost", _ADDRESS)
_MAX_REST = 30.0  # seconds between two pages; the first one takes long, as it encodes all pictures


class Server(http.server.ThreadingHTTPServer):
    """Serves the report of one workdir. Use as a context manager, and call `serve_forever`."""

    daemon_threads = True
    request_queue_size = 64  # a page asks for little, but every few seconds

    def __init__(
        self, files: Workdir, *, port: int, refresh_seconds: float = REFRESH_SECONDS, max_load: float = 0.05
    ) -> None:
        """Listens already; port 0 is any that is free, see `url`.

        Open pages ask for newer ones every `refresh_seconds`; making them takes at most the share `max_load` of a
        processor from the training.

        Raises:
          UserError: the workdir holds no training, or the port cannot be had.
        """
        read_record(files)
        self._files, self._refresh_seconds, self._max_load = files, refresh_seconds, max_load
        self._lock = threading.Lock()
        self._version, self._page = "", b""
        self._rests_until = -math.inf
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            remedy = "give another, or --port=0 for any that is free"
            raise UserError(f"--port={port}: cannot be had ({reason_of(error)}); {remedy}") from error

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{_NAMES[0]}:{self.server_port}/"

    def page(self) -> bytes:
        """The report, made anew when any of its files is newer than the last one made.

        Raises:
          UserError: the workdir holds no training any more.
        """
        with self._lock:  # several browsers wait for one page
            version = self._newest_version()  # before the files are read: what is written meanwhile makes the next page
            if version != self._version:
                start = time.process_time()  # to wait for a busy processor costs the training nothing
                self._page = render(self._files, version=version, refresh_seconds=self._refresh_seconds).encode()
                self._version = version
                cost = time.process_time() - start
                self._rests_until = time.monotonic() + min(cost / self._max_load, _MAX_REST)
            return self._page

    def version(self) -> str:
        """The version that a page should be of: the newest, unless the last page was made only just now.

        Raises:
          UserError: the workdir is gone.
        """
        if not self._files.path.is_dir():
            raise UserError(f"{self._files.path}: is gone")
        return self._version if time.monotonic() < self._rests_until else self._newest_version()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of a browser that went away, as when a page is left while it loads."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def _newest_version(self) -> str:
        """Changes with any file that the report is made of."""
        found = []
        for path in sources(self._files):
            with contextlib.suppress(OSError):
                about = path.stat()
                found.append((path.name, about.st_mtime_ns, about.st_size))
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD of two paths."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a silent connection may take up a thread

    def do_GET(self) -> None:
        """Answers."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0].lower()
        status, kind = HTTPStatus.OK, "plain"
        try:
            if host not in _NAMES:  # else a page from elsewhere could read this one, by a name that leads here
                status, body = HTTPStatus.FORBIDDEN, b"this page is for http://localhost only\n"
            elif self.path == "/version":
                body = self.server.version().encode()
            elif self.path == "/":
                body, kind = self.server.page(), "html"
            else:
                status, body = HTTPStatus.NOT_FOUND, b"there is only /\n"
        except (UserError, OSError) as error:
            status, body = HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(errors="replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"text/{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: the page asks every few seconds."""


def serve(files: Workdir, *, port: int) -> None:
    """Serves the report until Ctrl-C. Raises UserError as `Server` does."""
    with Server(files, port=port) as server:
        print(f"the report is at {server.url} (Ctrl-C ends this)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
