"""Progress of long work, by tqdm: on stderr, or in a notebook."""

import contextlib
import sys
from typing import Any

from tqdm import tqdm

_LOG_INTERVAL = 30.0  # seconds between two lines in a log file: about 300 kB a day


def progress_bar(total: int, *, desc: str, unit: str = "it", initial: int = 0, disable: bool = False) -> tqdm:
    """A tqdm bar on stderr: on a terminal the usual one, elsewhere (a log file) a line every 30 s, and a last one.

    In a notebook it is tqdm's bar there.

    A stderr that is missing, closed or full never ends the work: nothing is shown then. Give `refresh=False` to
    `set_postfix`, or it adds a line to the log file each time.

    Args:
      total: how many units of work there are.
      desc: what is being done.
      unit: what is counted, in the singular.
      initial: how many units are done already.
      disable: show nothing.
    """
    if "ipykernel" in sys.modules:  # a notebook
        from tqdm.auto import tqdm as tqdm_auto

        return tqdm_auto(total=total, desc=desc, unit=unit, initial=initial, disable=disable)
    stream = sys.stderr
    if stream is None or stream.closed:
        return tqdm(total=total, initial=initial, disable=True)
    pace: dict[str, Any] = {"dynamic_ncols": True}
    if not stream.isatty():
        pace = {"mininterval": _LOG_INTERVAL, "miniters": 1}
    return tqdm(total=total, desc=desc, unit=unit, initial=initial, disable=disable, file=_Stderr(stream), **pace)


class _Stderr:
    """A text stream whose write errors are ignored. tqdm ignores some of them, but not a full disk or a closed pipe.

    Without a terminal, the carriage return before each update becomes a line end: a log file gets whole lines.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._new_line = "\r" if stream.isatty() else "\n"

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text.replace("\r", self._new_line))

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # encoding, fileno
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # so that `tqdm.write` clears a bar on stderr for a line on stdout
        return other is self._stream and self._new_line == "\r"

    __hash__ = None  # type: ignore[assignment]
