"""The live page: whom it answers, and what with."""

import http.client
import os
import socket
import threading
import types

import pytest

from medgan_jax.errors import UserError
from medgan_jax.report import page
from medgan_jax.report import server as module
from medgan_jax.report.server import Server


@pytest.fixture
def server(make, monkeypatch):
    monkeypatch.setattr(page, "draw_plots", lambda record: {})
    monkeypatch.setattr(module, "_SHARE", 1e9)
    with Server(make(), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def raiser(error):
    def fail(*arguments, **more):
        raise error

    return fail


def ask(server, path, *, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, answer.headers


def test_it_gives_the_page_and_makes_it_anew_when_a_log_grows(server):
    status, first, headers = ask(server, "/")
    assert status == 200
    assert "connect-src &#x27;self&#x27;" in first
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    version = ask(server, "/version")[1]
    assert f'"live":"{version}"' in first
    assert ask(server, "/")[1] == first
    with open(server._files.metrics, "a") as file:
        file.write('{"step": 401, "loss_gen": 8.38, "loss_dis": 1}\n')
    assert ask(server, "/version")[1] != version
    assert "8.38" in ask(server, "/")[1]


def test_pages_that_look_on_take_little_of_the_processor(server, monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 1e-9)
    before = ask(server, "/")[1]
    server._files.alarms.write_text("")
    assert f'"live":"{ask(server, "/version")[1]}"' in before
    assert ask(server, "/")[1] != before  # who asks gets the newest


def test_a_page_is_made_once_for_all_and_again_when_a_file_is_replaced(server, monkeypatch):
    made = []
    monkeypatch.setattr(module, "render", lambda files, *, version: made.append(version) or version)
    assert ask(server, "/")[1] == ask(server, "/")[1] == made[0]
    os.utime(server._files.reals, ns=(1, 1))  # of the same size
    assert ask(server, "/")[1] == made[1] != made[0]
    assert len(made) == 2


def test_head_gives_no_body(server):
    status, body, headers = ask(server, "/", method="HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) == len(ask(server, "/")[1].encode())


@pytest.mark.parametrize(
    "path", ["/config.json", "/samples/reals.png", "/../../etc/passwd", "/%2e%2e/", "/?x", "/version/", "*"]
)
def test_nothing_else_is_served(server, path):
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_takes_nothing(server, method):
    assert ask(server, "/", method=method)[0] == 501


def test_only_this_machines_names_are_answered(server):
    """A page from elsewhere may have its own name lead to 127.0.0.1."""
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "", "[::1]", "127.0.0.1.evil.example"):
        assert ask(server, "/", host=host)[0] == 403, host
        assert ask(server, "/version", host=host)[0] == 403, host
    for host in ("localhost", "127.0.0.1", f"LOCALHOST:{server.server_port}"):
        assert ask(server, "/version", host=host)[0] == 200, host
    assert server.server_address[0] == "127.0.0.1"


def test_a_workdir_that_goes_away_is_told(server):
    server._files.path.rename(server._files.path.with_name("moved"))
    status, body, _ = ask(server, "/")
    assert status == 503
    assert "there is no such folder" in body
    assert ask(server, "/version")[0] == 503  # so a page that looks on keeps what it shows


def test_a_file_that_cannot_be_read_is_told(server, monkeypatch):
    monkeypatch.setattr(module, "render", raiser(PermissionError(13, "Permission denied", "/run/samples")))
    status, body, headers = ask(server, "/")
    assert (status, headers["Content-Type"]) == (503, "text/plain; charset=utf-8")
    assert "Permission denied: '/run/samples'" in body


def test_a_browser_that_goes_away_is_no_news(server, capsys):
    for error, said in ((BrokenPipeError(), False), (ConnectionResetError(), False), (KeyError("ours"), True)):
        try:
            raise error
        except Exception:
            server.handle_error(None, ("127.0.0.1", 1))
        assert ("Traceback" in capsys.readouterr().err) == said


def test_after_a_page_that_took_long_the_next_one_is_not_far(make, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0]))
    monkeypatch.setattr(module, "render", lambda files, *, version: now.__setitem__(0, now[0] + 40) or "page")
    with Server(make(), port=0) as server:
        server.page()
        server._files.alarms.write_text("")
        first = server.offered()
        now[0] += 29
        assert server.offered() == first
        now[0] += 2
        assert server.offered() == server.version() != first


def test_a_port_in_use_is_one_line(make):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port}: is in use; give another"):
            Server(make(), port=port)
