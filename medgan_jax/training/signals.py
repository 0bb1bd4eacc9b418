"""Handling of SIGINT and SIGTERM during a run."""

import signal
from types import FrameType
from typing import Self


class Signals:
    """Handles SIGINT and SIGTERM within `with`: they interrupt at once, or are noted while `postpone` holds."""

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
        if not self._postponed:
            raise KeyboardInterrupt(number)
        self.caught = self.caught or number

    def __enter__(self) -> Self:
        """Installs the handlers."""
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        """Restores the handlers from before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
