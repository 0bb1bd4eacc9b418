"""SIGINT and SIGTERM during a training."""

import signal
from types import FrameType
from typing import Self


class Signals:
    """SIGINT and SIGTERM: they interrupt at once while there is nothing to save, and are kept for later after that."""

    def __init__(self) -> None:
        """Not in force before `with`."""
        self.caught = 0  # the number of the first signal that was postponed
        self._postponed = False

    def postpone(self) -> None:
        """From here on signals are only noted in `caught`: a call of the device, or a save, is not to be cut short."""
        self._postponed = True

    def resume(self) -> None:
        """From here on signals interrupt at once again: all is saved."""
        self._postponed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._postponed:
            raise KeyboardInterrupt(number)
        self.caught = self.caught or number

    def __enter__(self) -> Self:
        """In force."""
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        """No longer in force."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
