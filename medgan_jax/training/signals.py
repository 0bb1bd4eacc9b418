"""Handling of the signals that ask a run to stop."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

# Of Ctrl-C, of a terminal that is gone, and of schedulers: a notice before the end (Slurm, SGE), processor time.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)

_AGAIN_S = 0.02


class Signals:
    """Handles signals within `with`: they interrupt at once, or are noted while `postpone` holds.

    Only the main thread can: in another, a program handles them itself.

    SIGHUP stays ignored where it is, as under nohup. Of the others, SIGINT is ignored in what a script starts in the
    background, where it still means to stop.
    """

    def __init__(self) -> None:
        """Installs no handler yet."""
        self.caught = 0  # the number of the first signal that was postponed
        self._postponed = False

    def postpone(self) -> None:
        """From here on signals are only noted in `caught`, so that no step and no save is cut short."""
        self._postponed = True

    def resume(self) -> None:
        """From here on signals interrupt at once again."""
        self._postponed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._postponed:
            self.caught = self.caught or number
        else:
            raise KeyboardInterrupt(number)

    def _not_raised(self, dropped: Any) -> None:
        """Asks again where Python drops an exception: in `__del__`, weak references, and JAX's garbage collection."""
        if dropped.exc_type is KeyboardInterrupt and dropped.exc_value.args:
            threading.Timer(_AGAIN_S, os.kill, (os.getpid(), dropped.exc_value.args[0])).start()
        else:
            self._previous_hook(dropped)

    def __enter__(self) -> Self:
        """Installs the handlers."""
        no_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        is_main = threading.current_thread() is threading.main_thread()
        heard = [number for number in ASKING if is_main and not (no_hangup and number == signal.SIGHUP)]
        self._previous = {number: signal.signal(number, self._handle) for number in heard}
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._not_raised
        return self

    def __exit__(self, *exception: object) -> None:
        """Restores the handlers from before."""
        sys.unraisablehook = self._previous_hook
        for number, handler in self._previous.items():
            signal.signal(number, handler)
