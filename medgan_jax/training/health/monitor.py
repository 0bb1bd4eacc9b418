"""Alarms: evaluates the health checks on a training's logs.

A check compares medians over the last `alarm_patience` steps, so that no single line raises an alarm. An alarm is
raised once, when its check first fails, and again only after the check has passed for as long. The same lines raise the
same alarms, so stopping and resuming a training changes none. docs/alarms.md explains each alarm and how often it errs.
"""

import bisect
import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterable
from typing import Any

from medgan_jax.config import Config
from medgan_jax.training.health.checks import CHECKS, DIVERGENCE, Check, Finding, HealthWindow, higher_lr, median

_MIN_METRICS_LINES = 10  # of a window, however rarely they are written
_MIN_HEALTH_LINES = 4
_FIELDS = ("step", "alarm", "title", "since", "sentence", "evidence", "remedies", "action")  # of alarms.jsonl


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A check that failed."""

    name: str  # as in alarms.jsonl
    title: str  # for people
    step: int  # at which it was raised
    since: int  # the step after which the evidence lies
    sentence: str  # what goes wrong
    evidence: str  # the measured values
    remedies: tuple[str, ...]  # two or three, each naming config fields
    lower_lr: str = "lr_dis"  # or "lr_gen": the learning rate that a rollback lowers

    def line(self, action: str) -> dict[str, Any]:
        """The line of alarms.jsonl; `action` is what was done about it."""
        line = dataclasses.asdict(self) | {"alarm": self.name, "remedies": list(self.remedies), "action": action}
        return {name: line[name] for name in _FIELDS}


class Monitor:
    """Takes the lines of both logs as they are written, and returns the alarms to raise."""

    def __init__(self, config: Config, *, slowed_at: int = -1) -> None:
        """Starts without any lines; `config` has the learning rates that rollbacks may have changed.

        Lines after `slowed_at`, the step that the last rollback went back to, are evaluated without earlier ones.
        """
        self._config = config
        self._slowed_at = slowed_at
        self._metrics: list[dict[str, Any]] = []
        self._health: list[dict[str, Any]] = []
        self._failed_at: dict[str, int] = {}  # by check, the last step at which it failed
        self._first_gradients: list[dict[str, Any]] = []
        self._best_diversity = 0.0

    def follow(self, metrics: Iterable[dict[str, Any]], health: Iterable[dict[str, Any]]) -> list[Alarm]:
        """Takes both logs up to now; returns all alarms that they raise, which a resumed training raised before."""
        alarms = []
        tagged = ([(line, name) for line in lines] for name, lines in (("metrics", metrics), ("health", health)))
        for line, name in heapq.merge(*tagged, key=lambda entry: entry[0]["step"]):  # at equal steps, metrics first
            if name == "metrics":
                self.add_metrics(line)
            else:
                alarms += self.add_health(line)
        return alarms

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Takes the next line of metrics.jsonl."""
        if line["step"] % self._config.dis_steps:  # the generator was not updated in this step, and its norm is 0
            line = {name: value for name, value in line.items() if name != "grad_norm_gen"}
        elif len(self._first_gradients) < _MIN_METRICS_LINES:
            self._first_gradients.append(line)
        self._metrics.append(line)

    def add_health(self, line: dict[str, Any]) -> list[Alarm]:
        """Takes the next line of health.jsonl, after the metrics up to its step; returns the alarms to raise now."""
        self._health.append(line)
        step = line["step"]
        health = self._recent(self._health, step, _MIN_HEALTH_LINES)
        if health:
            self._best_diversity = max(self._best_diversity, median(health, "diversity"))
        window = HealthWindow(
            self._config,
            step,
            self._recent(self._metrics, step, _MIN_METRICS_LINES),
            health,
            first_gradient=median(self._first_gradients, "grad_norm_gen"),
            first_health=self._health[0],
            best_diversity=self._best_diversity,
        )
        alarms = []
        for check in CHECKS:
            finding = check.find(window)
            if finding is None:
                continue
            last = self._failed_at.get(check.name, -math.inf)
            if step - last > self._config.alarm_patience or last <= self._slowed_at < step:
                alarms.append(self._alarm(check, step, window.since, finding))
            self._failed_at[check.name] = step
        return alarms

    def not_finite(self, what: str, step: int, since: int) -> Alarm:
        """The alarm for `what`, a value that is NaN or infinite; `since` is the last step known to be finite."""
        sentence = "The training holds values that are not finite; further steps cannot repair it."
        return self._alarm(DIVERGENCE, step, since, Finding(sentence, what, higher_lr(self._config)))

    def _alarm(self, check: Check, step: int, since: int, finding: Finding) -> Alarm:
        remedies = tuple(itertools.islice(check.remedies(self._config, finding.lower_lr), 3))
        return Alarm(
            check.name, check.title, step, since, finding.sentence, finding.evidence, remedies, finding.lower_lr
        )

    def _recent(self, lines: list[dict[str, Any]], step: int, fewest: int) -> list[dict[str, Any]]:
        """The lines of the last `alarm_patience` steps, but at least `fewest`.

        None where not all of these steps were taken with the current learning rates.
        """
        patience = self._config.alarm_patience
        changed = self._slowed_at if step > self._slowed_at else -1
        first = bisect.bisect_right(lines, step - patience, key=lambda line: line["step"])
        first = min(first, len(lines) - fewest)
        too_few = first < 0 or step < max(changed, 0) + patience or lines[first]["step"] <= changed
        return [] if too_few else lines[first:]
