"""Alarms: what is going wrong in a training, judged by its logs alone.

A sign is a median over the last `alarm_patience` steps, so that no single line raises an alarm. An alarm is raised
once, when its sign appears, and again only after the sign has been away for as long. The same lines raise the same
alarms, so a training that is stopped and goes on is watched as if it had not been. docs/alarms.md explains each, and
says how often it errs.
"""

import bisect
import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from medgan_jax.config import Config
from medgan_jax.training.health.checks import SIGNS, Found, Look, faster, median

_METRICS_LINES = 10  # at least so many lines make a window, however rare they are
_HEALTH_LINES = 4


@dataclasses.dataclass(frozen=True)
class Alarm:
    """What goes wrong.

    Attributes:
      name: as in alarms.jsonl.
      title: for people.
      step: at which it was raised.
      since: the step at which the evidence begins.
      sentence: what it means.
      evidence: the figures.
      remedies: two or three, each naming config fields.
      too_fast: "lr_dis" or "lr_gen", of the network that a rollback should slow down.
    """

    name: str
    title: str
    step: int
    since: int
    sentence: str
    evidence: str
    remedies: tuple[str, ...]
    too_fast: str = "lr_dis"

    def line(self, action: str) -> dict[str, Any]:
        """Its line in alarms.jsonl; `action` is what was done."""
        return {
            "step": self.step,
            "alarm": self.name,
            "title": self.title,
            "since": self.since,
            "sentence": self.sentence,
            "evidence": self.evidence,
            "remedies": list(self.remedies),
            "action": action,
        }


class Monitor:
    """Watches a training."""

    def __init__(self, config: Config, *, slowed_at: int = -1) -> None:
        """Has seen nothing yet.

        Args:
          config: the training, with the rates of now where rollbacks changed them.
          slowed_at: the step to which the last rollback led; what is seen after it is not judged by what was before.
        """
        self._config = config
        self._slowed_at = slowed_at
        self._metrics: list[dict[str, Any]] = []
        self._health: list[dict[str, Any]] = []
        self._seen: dict[str, int] = {}  # at which step the sign of an alarm was there last
        self._first_gradients: list[dict[str, Any]] = []
        self._best_diversity = 0.0

    def follow(self, metrics: Iterable[dict[str, Any]], health: Iterable[dict[str, Any]]) -> list[Alarm]:
        """Takes in the logs of a training so far, as if it had been watched; the alarms that were to raise then."""
        raised, metrics = [], collections.deque(metrics)
        for line in health:
            while metrics and metrics[0]["step"] <= line["step"]:
                self.take_metrics(metrics.popleft())
            raised += self.take_health(line)
        for line in metrics:
            self.take_metrics(line)
        return raised

    def take_metrics(self, line: dict[str, Any]) -> None:
        """Takes in a line of metrics.jsonl."""
        if line["step"] % self._config.dis_steps:  # the generator did not learn in this step
            line = {name: value for name, value in line.items() if name != "grad_norm_gen"}
        elif "grad_norm_gen" in line and len(self._first_gradients) < _METRICS_LINES:
            self._first_gradients.append(line)
        self._metrics.append(line)

    def take_health(self, line: dict[str, Any]) -> list[Alarm]:
        """Takes in a line of health.jsonl, after those of metrics.jsonl up to it; the alarms to raise now."""
        self._health.append(line)
        step = line["step"]
        health = self._window(self._health, step, _HEALTH_LINES)
        if health:
            self._best_diversity = max(self._best_diversity, median(health, "diversity"))
        look = Look(
            self._config,
            step,
            self._window(self._metrics, step, _METRICS_LINES),
            health,
            first_gradient=median(self._first_gradients, "grad_norm_gen"),
            first_health=self._health[0],
            best_diversity=self._best_diversity,
        )
        raised = []
        for name, (_, sign, _) in SIGNS.items():
            found = sign(look)
            if not found:
                continue
            last = self._seen.get(name, -math.inf)
            if step - last > self._config.alarm_patience or last <= self._slowed_at < step:
                raised.append(self._alarm(name, step, look.since, found))
            self._seen[name] = step
        return raised

    def not_finite(self, what: str, step: int, since: int) -> Alarm:
        """The alarm for a number that is none: `what` says which; at the step `since` all was sound."""
        sentence = "The networks hold numbers that are none, which no further step can mend."
        return self._alarm("divergence", step, since, Found(sentence, what, too_fast=faster(self._config)))

    def _alarm(self, name: str, step: int, since: int, found: Found) -> Alarm:
        title, _, remedies = SIGNS[name]
        first = tuple(itertools.islice(remedies(self._config, found.too_fast), 3))
        return Alarm(name, title, step, since, found.sentence, found.evidence, first, found.too_fast)

    def _window(self, lines: Sequence[dict[str, Any]], step: int, fewest: int) -> list[dict[str, Any]]:
        """The lines of the last `alarm_patience` steps, at least `fewest`; none while it is too young."""
        patience = self._config.alarm_patience
        begun = self._slowed_at if step > self._slowed_at else -1
        first = bisect.bisect_right(lines, step - patience, key=lambda line: line["step"])
        first = min(first, len(lines) - fewest)
        young = first < 0 or step < max(begun, 0) + patience or lines[first]["step"] <= begun
        return [] if young else lines[first:]
