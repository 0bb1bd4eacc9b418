"""Progress of long work: one bar on a terminal, and a plain line now and then in a log file."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TextIO

from tqdm import tqdm

# In seconds. A log file has no line of short work, and of a day of training about eighty.
_FIRST_LINE = 10.0
_NEXT_LINE = 30.0
_NEXT_LINE_SHARE = 0.1  # of the time gone by, where that is more
_NEXT_LINE_AT_MOST = 1800.0

_FEWEST_COLUMNS = 30


class Progress:
    """How far some work is, on stderr: a context manager.

    On a terminal it is a bar that is drawn again in its place. Elsewhere (a file, a pipe, a batch system, a terminal
    that cannot move its cursor) it is whole lines: one when the work has taken 10 s, then at most one every 30 s, ever
    more rarely, and a last one. Where stderr is closed or full nothing is shown, and the work goes on.
    """

    def __init__(
        self,
        total: int,
        *,
        desc: str,
        unit: str = "it",
        initial: int = 0,
        disable: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shows the empty bar, where there is one.

        Args:
          total: how many units of work there are.
          desc: what is being done.
          unit: what is counted, in the singular.
          initial: how many are done already.
          disable: show nothing.
          stream: where to; stderr by default.
          clock: the time in seconds, for the plain lines.
        """
        self._desc, self._unit, self._postfix = desc, unit, ""
        self._total, self._done, self._clock = total, initial, clock
        self._stream = None if disable else stream or sys.stderr  # None also where Python runs without a stderr
        self._written: int | None = None  # how many were done at the last line
        self._bar: tqdm | None = None
        self.unpause()
        with self._spared():
            if self._stream is not None and _has_cursor(self._stream):
                self._bar = tqdm(
                    total=total, desc=desc, unit=unit, initial=initial, file=self._stream, dynamic_ncols=True
                )

    def update(self, number: int = 1) -> None:
        """So many more are done."""
        self._done += number
        if self._bar is not None:
            with self._spared():
                self._bar.update(number)
        elif self._clock() >= self._next_line:
            self._write_line()

    def set_description(self, desc: str) -> None:
        """What is being done now."""
        self._desc = desc
        if self._bar is not None:
            with self._spared():
                self._bar.set_description(desc)

    def set_postfix(self, postfix: str | Mapping[str, str]) -> None:
        """What to show after the rest: a text, or values by name."""
        if not isinstance(postfix, str):
            postfix = ", ".join(f"{name}={value}" for name, value in postfix.items())
        self._postfix = postfix
        if self._bar is not None:
            with self._spared():
                self._bar.set_postfix_str(postfix)

    def unpause(self) -> None:
        """Leaves the time since the last update, as for compiling, out of the rate."""
        if self._bar is not None:
            self._bar.unpause()
        self._began, self._began_with = self._clock(), self._done
        self._next_line = self._began + _FIRST_LINE

    def say(self, line: str, *, file: TextIO | None = None) -> None:
        """Prints a line, on stdout by default, above the bar."""
        with self._spared():
            if self._bar is not None:
                self._bar.clear()
        with contextlib.suppress(OSError, ValueError):
            print(line, file=file or sys.stdout, flush=True)
        with self._spared():
            if self._bar is not None:
                self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar as it is now, or writes the last line."""
        if self._bar is not None:
            with self._spared():
                self._bar.close()
        elif self._written not in (None, self._done):
            self._write_line()
        self._stream = self._bar = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes it."""
        self.close()

    def _write_line(self) -> None:
        now = self._clock()
        seconds = now - self._began
        self._next_line = now + min(max(_NEXT_LINE, _NEXT_LINE_SHARE * seconds), _NEXT_LINE_AT_MOST)
        self._written = self._done
        parts = [f"{self._desc}: {self._done}/{self._total} ({self._done / max(self._total, 1):.0%})"]
        made = self._done - self._began_with
        if made > 0 and seconds > 0:
            parts.append(_rate(made / seconds, self._unit))
            parts.append(f"{tqdm.format_interval((self._total - self._done) * seconds / made)} left")
        if self._postfix:
            parts.append(self._postfix)
        with self._spared():
            if self._stream is not None:
                print(", ".join(parts), file=self._stream, flush=True)

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        """Goes on without showing anything where the stream is broken or closed."""
        try:
            yield
        except (OSError, ValueError):
            if self._bar is not None:
                self._bar.disable = True
            self._stream = self._bar = None


def _has_cursor(stream: TextIO) -> bool:
    """Whether a bar can be drawn again in its place; terminals of batch systems may not even have a size."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except OSError:
        return False
    return columns >= _FEWEST_COLUMNS and lines > 1  # of a smaller one tqdm makes blanks


def _rate(per_second: float, unit: str) -> str:
    return f"{per_second:.1f} {unit}/s" if per_second >= 1 else f"{1 / per_second:.1f} s/{unit}"
