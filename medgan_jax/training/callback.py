"""What a callback of a run is: the calls that it gets, and what it may answer. Those of every run are in `callbacks`.

In a run of several processes all of them call each callback; only one of them writes files (`run.files.writes`).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medgan_jax.config import Config
from medgan_jax.errors import UserError
from medgan_jax.training.health.monitor import Alarm
from medgan_jax.training.state import GANState

if TYPE_CHECKING:
    from medgan_jax.training.trainer import Run


@dataclasses.dataclass(frozen=True)
class Stop:
    """Answer of a callback: save and end the run, with exit code 3; `reason` ends the sentence "stopped by"."""

    reason: str = "a callback"


@dataclasses.dataclass(frozen=True)
class RollBack:
    """Answer of a callback: go on from a checkpoint at or before `to_step`, with other learning rates.

    Attributes:
      to_step: the last step of which all is known to be sound.
      learning_rates: `lr_gen` and `lr_dis` from then on.
      alarms: why; known in the process that writes.
    """

    to_step: int
    learning_rates: dict[str, float]
    alarms: Sequence[Alarm] = ()


Action = Stop | RollBack


class Diverged(UserError):
    """A loss or a parameter is no longer finite."""


class Callback:
    """What a run does besides its steps. Override what is needed; every method does nothing by default.

    In a run of several processes all must return the same action.
    """

    def every(self, config: Config) -> int:
        """How many steps lie between two calls of `on_step`, which is also called at the last step; 0: never."""
        return 0

    def check(self, config: Config, *, is_new: bool) -> None:
        """Raises UserError where the config cannot work, before the images are decoded."""

    def on_start(self, run: "Run", state: GANState) -> None:
        """Called before the first step, and again after a rollback."""

    def on_metrics(self, run: "Run", step: int, metrics: dict[str, np.ndarray]) -> Action | None:
        """Called with the metrics of the last few steps, each (count,), while the next ones compute.

        `step` is the last of them; `run.step` may be further. An action skips the callbacks after this one.
        """

    def on_step(self, run: "Run", state: GANState) -> Action | None:
        """Called every so many steps with the state at `run.step`. An action skips the callbacks after this one."""

    def on_stop(self, run: "Run", state: GANState) -> Action | None:
        """Called when the steps end: at the last one, after `Stop`, or on a signal.

        An action takes the place of what ended them, and skips the callbacks after this one.
        """

    def on_roll_back(self, run: "Run", action: RollBack, to_step: int) -> None:
        """Called when the run goes back to the checkpoint of `to_step`."""

    def on_end(self, run: "Run", state: GANState) -> None:
        """Called when the run has ended and all is saved; also where it had ended before."""

    def on_error(self, run: "Run", error: Exception) -> None:
        """Called instead of `on_end` when an error ends the run."""

    def summary(self, run: "Run") -> Iterator[str]:
        """Lines for the user at the end."""
        yield from ()
