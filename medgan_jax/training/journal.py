"""What a training tells of itself while it runs: its logs, TensorBoard's, its pictures, and the report made of them."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from medgan_jax.config import Config
from medgan_jax.images import image_grid, write_png
from medgan_jax.report.page import write_report
from medgan_jax.report.plots import write_plots
from medgan_jax.training.tensorboard import TensorBoard
from medgan_jax.workdir import Workdir


class Journal:
    """Writes into a workdir, in the process that does."""

    def __init__(self, files: Workdir, config: Config, *, first_step: int) -> None:
        """Goes on after `first_step`: what was told of later steps is forgotten."""
        self._files = files
        self._config = config
        files.forget_after(first_step)
        self._tensorboard = TensorBoard(files.tensorboard, first_step=first_step) if config.tensorboard else None
        self._reported_at = time.monotonic()

    def metrics(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self._append("metrics", line)

    def evaluation(self, line: dict[str, Any]) -> None:
        """A line of evaluations.jsonl."""
        self._append("evaluations", line)

    def health(self, line: dict[str, Any]) -> None:
        """A line of health.jsonl."""
        self._append("health", line)

    def alarm(self, line: dict[str, Any]) -> None:
        """A line of alarms.jsonl."""
        self._files.append(self._files.alarms, line)
        if self._tensorboard:
            text = f"{line['title']}: {line['sentence']} {line['evidence']}. {'; '.join(line['remedies'])}."
            self._tensorboard.text("alarms", line["step"], text)

    def picture(self, step: int, images: np.ndarray) -> None:
        """The fakes of the fixed latents, uint8 (N, H, W, C)."""
        grid = image_grid(images)
        write_png(self._files.picture(step), grid)
        if self._tensorboard:
            self._tensorboard.picture("fixed latents", step, grid)

    def reals(self, images: np.ndarray) -> None:
        """Reals to compare them with, uint8 (N, H, W, C)."""
        write_png(self._files.reals, image_grid(images))

    def refresh_report(self) -> None:
        """Makes the report anew where the last one is old enough."""
        minutes = self._config.report_every_minutes
        if minutes and time.monotonic() - self._reported_at > 60 * minutes:
            self._make(write_report)
            self._reported_at = time.monotonic()

    def close(self, *, report: bool = False) -> None:
        """Ends; with `report` it leaves the report and the plots, where they are wanted."""
        if self._tensorboard:
            self._tensorboard.close()
        if report:
            self._make(write_plots, write_report)

    def _make(self, *writers: Callable[[Workdir], object]) -> None:
        if self._config.report:
            try:
                for write in writers:
                    write(self._files)
            except Exception as error:  # hours of training are not to end for want of a page
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"{self._files.report}: could not be made ({reason})", stacklevel=2)

    def _append(self, log: str, line: dict[str, Any]) -> None:
        self._files.append(getattr(self._files, log), line)
        if self._tensorboard:
            self._tensorboard.line(line)
