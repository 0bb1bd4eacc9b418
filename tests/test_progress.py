"""A bar where a cursor can move, whole lines elsewhere, and nothing at all rather than a training that dies of it."""

import errno
import io
import re

import pytest

from medgan_jax.progress import Progress

TERMINAL = 10**6  # a file that is not open, of which the size below is asked


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.TextIOWrapper):
    """A terminal of an encoding, and what it was sent."""

    def __init__(self, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True, newline="")

    def isatty(self):
        return True

    def fileno(self):
        return TERMINAL

    @property
    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


class Broken(io.StringIO):
    """A stream whose reader is gone once `broken` is set."""

    def __init__(self, *, terminal, broken=True):
        super().__init__()
        self.terminal, self.broken = terminal, broken

    def isatty(self):
        return self.terminal

    def fileno(self):
        return TERMINAL

    def write(self, text):
        if self.broken:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


@pytest.fixture(autouse=True)
def terminal_size(monkeypatch):
    size = [100, 24]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("os.get_terminal_size", {TERMINAL: size}.get)
    return size


def test_a_terminal_gets_a_bar(capsys):
    terminal = Terminal()
    with Progress(4, desc="sampling", unit="image", stream=terminal) as bar:
        bar.update(3)
        bar.set_postfix({"loss": "0.31"})
        bar.say("a picture")
        bar.set_description("going on")
        bar.update()
    first, *_, last = terminal.text.split("\r")
    assert first == ""
    assert "going on: 100%" in last and "█" in last and "4/4" in last and "image/s" in last and "loss=0.31" in last
    assert terminal.text.endswith("\n") and terminal.text.count("\n") == 1
    assert capsys.readouterr().out == "a picture\n"


def test_a_terminal_of_few_characters_gets_them():
    terminal = Terminal("ascii")
    with Progress(2, desc="sampling", stream=terminal) as bar:
        bar.update(2)
    assert "##" in terminal.text


def test_the_bar_is_cleared_for_a_line_and_drawn_again():
    terminal = Terminal()
    with Progress(4, desc="sampling", stream=terminal) as bar:
        bar.update()
        bar.say("a line", file=terminal)
    before, after = terminal.text.split("a line\n")
    assert re.search(r"\r *\r$", before)
    assert "sampling" in after


def lines(stream):
    text = stream.getvalue()
    assert "\r" not in text and "\x1b" not in text
    assert not text or text.endswith("\n")
    return text.splitlines()


def test_short_work_leaves_no_line_in_a_file():
    stream, clock = io.StringIO(), Clock()
    with Progress(100, desc="sampling", stream=stream, clock=clock) as bar:
        for _ in range(99):
            clock.now += 0.1
            bar.update()
    assert lines(stream) == []


def test_a_file_gets_whole_lines():
    stream, clock = io.StringIO(), Clock()
    with Progress(200, desc="training", unit="step", initial=100, stream=stream, clock=clock) as bar:
        for _ in range(21):
            clock.now += 2
            bar.set_postfix({"loss D": "0.50", "G": "1.25"})
            bar.update(2)
    assert lines(stream) == [
        "training: 110/200 (55%), 1.0 step/s, 01:30 left, loss D=0.50, G=1.25",
        "training: 140/200 (70%), 1.0 step/s, 01:00 left, loss D=0.50, G=1.25",
        "training: 142/200 (71%), 1.0 step/s, 00:58 left, loss D=0.50, G=1.25",
    ]


def test_slow_work_is_told_in_seconds_each_and_the_last_line_once():
    stream, clock = io.StringIO(), Clock()
    with Progress(2, desc="evaluating", unit="measure", stream=stream, clock=clock) as bar:
        for name in ("FID", "KID"):
            clock.now += 40
            bar.set_postfix(name)
            bar.update()
    assert lines(stream) == [
        "evaluating: 1/2 (50%), 40.0 s/measure, 00:40 left, FID",
        "evaluating: 2/2 (100%), 40.0 s/measure, 00:00 left, KID",
    ]


def test_lines_of_a_week_grow_rare():
    stream, clock = io.StringIO(), Clock()
    times = []
    with Progress(7 * 24 * 1200, desc="training", stream=stream, clock=clock) as bar:
        for _ in range(7 * 24 * 1200):
            clock.now += 3
            before = stream.tell()
            bar.update()
            if stream.tell() > before:
                times.append(clock.now - 1000)
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert times[0] == 12 and min(gaps) == 30 and max(gaps) == 1800
    assert gaps == sorted(gaps)
    assert len([time for time in times if time <= 24 * 3600]) < 100


def test_time_before_unpausing_is_in_no_rate():
    stream, clock = io.StringIO(), Clock()
    with Progress(100, desc="compiling", unit="step", initial=20, stream=stream, clock=clock) as bar:
        clock.now += 300
        bar.unpause()
        bar.set_description("training")
        clock.now += 5
        bar.update(10)
        assert lines(stream) == []
        clock.now += 5
        bar.update(10)
    assert lines(stream) == ["training: 40/100 (40%), 2.0 step/s, 00:30 left"]


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal, clock = Terminal(), Clock()
    with Progress(2, desc="sampling", stream=terminal, clock=clock) as bar:
        clock.now += 20
        bar.update()
    assert terminal.text == "sampling: 1/2 (50%), 20.0 s/it, 00:20 left\n"


@pytest.mark.parametrize("size", [(0, 0), (100, 0), (12, 24)])
def test_a_terminal_without_a_size_gets_lines(terminal_size, size):
    """As one of a batch system, where tqdm draws nothing at all."""
    terminal_size[:] = size
    terminal, clock = Terminal(), Clock()
    with Progress(2, desc="sampling", stream=terminal, clock=clock) as bar:
        clock.now += 20
        bar.update()
    assert terminal.text == "sampling: 1/2 (50%), 20.0 s/it, 00:20 left\n"


def test_what_is_switched_off_shows_nothing(capsys):
    terminal = Terminal()
    with Progress(2, desc="sampling", disable=True, stream=terminal) as bar:
        bar.update()
        bar.set_description("x")
        bar.set_postfix("y")
        bar.unpause()
        bar.say("still said")
    assert terminal.text == ""
    assert capsys.readouterr().out == "still said\n"


def use(stream, clock):
    with Progress(5, desc="sampling", stream=stream, clock=clock) as bar:
        for _ in range(5):
            clock.now += 100
            bar.update()
            bar.set_postfix("x")
            bar.set_description("y")
            bar.unpause()
            bar.say("a line", file=stream)
            if isinstance(stream, Broken):
                stream.broken = True
            else:
                stream.close()
    return bar


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_a_reader_who_leaves_stops_no_work(terminal, broken):
    assert use(Broken(terminal=terminal, broken=broken), Clock())._done == 5


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_stream_that_closes_stops_no_work(stream):
    assert use(stream(), Clock())._done == 5


def test_no_stderr_at_all_stops_no_work(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with Progress(2, desc="sampling") as bar:
        bar.update()
    assert bar._done == 1
