"""The live page: whom it answers, and what with."""

import contextlib
import http.client
import socket
import threading

import pytest

from medgan_jax.errors import UserError
from medgan_jax.report.server import Server

pytestmark = pytest.mark.usefixtures("no_plots")


@contextlib.contextmanager
def serving(files, **options):
    with Server(files, port=0, **{"max_load": 1e9} | options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def files(make):
    return make()


def ask(server, path, *, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, answer.headers


def test_it_gives_the_page_and_makes_it_anew_when_a_log_grows(files):
    with serving(files) as server:
        status, first, headers = ask(server, "/")
        assert status == 200
        assert "connect-src &#39;self&#39;" in first
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        version = ask(server, "/version")[1]
        assert f'"live": "{version}"' in first
        assert server.page() is server.page()  # made once for all browsers
        with open(files.metrics, "a") as file:
            file.write('{"step": 401, "loss_gen": 8.38, "loss_dis": 1}\n')
        assert ask(server, "/version")[1] != version
        assert "8.38" in ask(server, "/")[1]
        status, body, headers = ask(server, "/", method="HEAD")
        assert (status, body) == (200, "")
        assert int(headers["Content-Length"]) == len(server.page())


def test_open_pages_take_little_of_the_processor(files):
    with serving(files, max_load=1e-9) as server:
        before = ask(server, "/")[1]
        files.alarms.write_text("")
        assert f'"live": "{ask(server, "/version")[1]}"' in before
        assert ask(server, "/")[1] != before  # who asks gets the newest


def test_nothing_else_is_served(files):
    with serving(files) as server:
        for path in ("/config.json", "/samples/reals.png", "/../../etc/passwd", "/%2e%2e/", "/?x", "/version/", "*"):
            assert ask(server, path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(server, "/", method=method)[0] == 501, method


def test_only_this_machines_names_are_answered(files):
    """A page from elsewhere may have its own name lead to 127.0.0.1."""
    with serving(files) as server:
        for host in ("evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.evil.example"):
            assert ask(server, "/", host=host)[0] == 403, host
            assert ask(server, "/version", host=host)[0] == 403, host
        for host in ("localhost", "127.0.0.1", f"LOCALHOST:{server.server_port}"):
            assert ask(server, "/version", host=host)[0] == 200, host
        assert server.server_address[0] == "127.0.0.1"


def test_a_workdir_that_goes_away_is_told(files):
    with serving(files) as server:
        files.path.rename(files.path.with_name("moved"))
        status, body, headers = ask(server, "/")
        assert (status, headers["Content-Type"]) == (503, "text/plain; charset=utf-8")
        assert "there is no such folder" in body
        assert ask(server, "/version")[0] == 503  # so an open page keeps what it shows


def test_a_port_in_use_is_one_line(files):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port}: cannot be had \(address already in use\); give another"):
            Server(files, port=port)
