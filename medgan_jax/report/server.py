"""The report as a live page, on this machine alone.

It answers to `/`, the page, and `/version`, and to nothing else; no file of the disk can be asked for.
"""

import contextlib
import errno
import hashlib
import http.server
import math
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from medgan_jax.errors import UserError, reason_of
from medgan_jax.report.page import render
from medgan_jax.report.record import read_record
from medgan_jax.workdir import Workdir

_ADDRESS = "127.0.0.1"  # no other machine can reach it
_NAMES = ("localhost", _ADDRESS)
_SHARE = 0.05  # of a processor at most, a page is made for browsers that look on: the training needs the processor too
_LONGEST_REST = 30  # seconds between two pages; the first one takes long, as it encodes all pictures


class Server(http.server.ThreadingHTTPServer):
    """Serves the report of one workdir. Use as a context manager, and call `serve_forever`."""

    daemon_threads = True
    request_queue_size = 64  # a page asks for little, but every few seconds

    def __init__(self, files: Workdir, *, port: int) -> None:
        """Listens already.

        Args:
          files: the workdir.
          port: 0 for any that is free; `url` tells which.

        Raises:
          UserError: the workdir holds no training, or the port cannot be had.
        """
        read_record(files)
        self._files = files
        self._lock = threading.Lock()
        self._made: tuple[str, bytes] = ("", b"")
        self._rests_until = -math.inf
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            found = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({reason_of(error)})"
            raise UserError(f"--port={port}: {found}; give another, or --port=0 for any that is free") from error

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{_NAMES[0]}:{self.server_port}/"

    def version(self) -> str:
        """Changes with any file that the report is made of."""
        files = self._files
        logs = (
            files.config, files.dataset, files.metrics, files.evaluations, files.health, files.alarms, files.rollbacks,
            files.runs, files.reals, files.path / "evaluation" / "evaluation.json",
        )  # fmt: skip
        sha = hashlib.sha256()
        for path in (*logs, *files.pictures().values()):
            try:
                about = path.stat()
            except OSError:
                continue
            sha.update(f"{path.name} {about.st_mtime_ns} {about.st_size}\n".encode(errors="replace"))
        return sha.hexdigest()[:16]

    def page(self) -> bytes:
        """The report, made anew when any of its files is newer than the last one made.

        Raises:
          UserError: the workdir holds no training any more.
        """
        with self._lock:  # several browsers wait for one page
            version = self.version()  # before the files are read: what is written meanwhile makes the next page
            if version != self._made[0]:
                start = time.process_time()  # to wait for a busy processor costs the training nothing
                self._made = version, render(self._files, version=version).encode()
                cost = time.process_time() - start
                self._rests_until = time.monotonic() + min(cost / _SHARE, _LONGEST_REST)
            return self._made[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of a browser that went away, as when a page is left while it loads."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def offered(self) -> str:
        """The version that a page should be of: the newest, unless the last page was made only just now.

        Raises:
          UserError: the workdir is gone.
        """
        if not self._files.path.is_dir():
            raise UserError(f"{self._files.path}: is gone")
        return self._made[0] if time.monotonic() < self._rests_until else self.version()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD of two paths."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a silent connection may take up a thread

    def do_GET(self) -> None:
        """Answers."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0].lower()
        if host not in _NAMES:  # else a page from elsewhere could read this one, by a name that leads here
            self._answer(HTTPStatus.FORBIDDEN, b"this page is for http://localhost only\n", kind="plain")
        elif self.path == "/version":
            self._answer(*self._made(lambda: self.server.offered().encode()), kind="plain")
        elif self.path == "/":
            status, body = self._made(self.server.page)
            self._answer(status, body, kind="html" if status == HTTPStatus.OK else "plain")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is only /\n", kind="plain")

    do_HEAD = do_GET

    def _made(self, make: Callable[[], bytes]) -> tuple[HTTPStatus, bytes]:
        try:
            return HTTPStatus.OK, make()
        except (UserError, OSError) as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(errors="replace")

    def _answer(self, status: HTTPStatus, body: bytes, *, kind: str) -> None:
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

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: the page asks every few seconds."""


def serve(files: Workdir, *, port: int) -> None:
    """Serves the report until Ctrl-C. Raises UserError as `Server` does."""
    with Server(files, port=port) as server:
        print(f"the report is at {server.url} (Ctrl-C ends this)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
