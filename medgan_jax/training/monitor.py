"""Alarms: what is going wrong in a training, judged by its logs alone.

A sign is a median over the last `alarm_patience` steps, so that no single line raises an alarm. An alarm is raised
once, when its sign appears, and again only after the sign has gone. The same lines raise the same alarms, so a training
that is stopped and goes on is watched as if it had not been. docs/alarms.md explains each, and says how often it errs.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from medgan_jax.config import Config

_METRICS_LINES = 10  # at least so many lines make a window, however rare they are
_HEALTH_LINES = 4
_WON = 0.98  # of the target for reals, and 1 - _WON for fakes: the discriminator is next to certain
_WON_HINGE = 0.02  # the hinge loss, which is 2 where nothing is told apart
_LOST = 0.9  # for fakes
_VANISHED = 1e-3  # of the generator's first gradients
_ALIKE = 0.07  # of the reals' diversity; a young training that is sound has about 0.15
_FALLEN = 0.4  # of the training's own best diversity
_NEAR_DUPLICATES = 0.5  # share of the fakes
_TOLD_APART, _NOT_TOLD_APART = 0.75, 0.25  # D(x) - D(G(z))
_SWINGS = 6  # between the two
_RUNAWAY = 100.0  # a loss, in nats
_GROWN = 8.0  # times the first weights, layer by layer; 1 to 3 in ten thousand steps that are sound
_OVERFITTED = 0.6  # r_v of Karras et al. 2020 (arXiv:2006.06676), who keep theirs below it
_CERTAIN = 1.0  # logits between reals and fakes, below which r_v is noise
_USUAL_RATE = 2e-4  # of the published networks
_COPIES = 0.25  # share of the fakes


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
    """

    name: str
    title: str
    step: int
    since: int
    sentence: str
    evidence: str
    remedies: tuple[str, ...]

    def line(self, action: str) -> dict[str, Any]:
        """Its line in alarms.jsonl; `action` is what was done."""
        values = dataclasses.asdict(self)
        name, remedies = values.pop("name"), values.pop("remedies")
        return {"step": values.pop("step"), "alarm": name, **values, "remedies": list(remedies), "action": action}


class Monitor:
    """Watches a training."""

    def __init__(self, config: Config, lr_dis: float) -> None:
        """Has seen nothing yet.

        Args:
          config: the training.
          lr_dis: the discriminator's rate, where rollbacks changed it.
        """
        self._config = config
        self._lr_dis = lr_dis
        self._metrics: list[dict[str, Any]] = []
        self._health: list[dict[str, Any]] = []
        self._present: set[str] = set()  # alarms whose sign has not gone since they were raised
        self._best_diversity = 0.0

    def follow(self, metrics: Iterable[dict[str, Any]], health: Iterable[dict[str, Any]]) -> None:
        """Takes in the logs of a training that goes on, as if it had been watched from the start."""
        metrics = list(metrics)
        for line in health:
            while metrics and metrics[0]["step"] <= line["step"]:
                self.take_metrics(metrics.pop(0))
            self.take_health(line)
        self._metrics += metrics

    def take_metrics(self, line: dict[str, Any]) -> None:
        """Takes in a line of metrics.jsonl."""
        self._metrics.append(line)

    def take_health(self, line: dict[str, Any]) -> list[Alarm]:
        """Takes in a line of health.jsonl, after those of metrics.jsonl up to it; the alarms to raise now."""
        self._health.append(line)
        step = line["step"]
        look = _Look(
            self._config,
            step,
            self._window(self._metrics, step, _METRICS_LINES),
            self._window(self._health, step, _HEALTH_LINES),
            first_gradient=_median(self._metrics[:_METRICS_LINES], "grad_norm_gen"),
            first_health=self._health[0],
            best_diversity=self._best_diversity,
        )
        if look.health:
            self._best_diversity = max(self._best_diversity, look.of("diversity"))
        raised = []
        for name, (title, sign, remedies) in _SIGNS.items():
            found = sign(look)
            if found and name not in self._present:
                sentence, evidence = found
                raised.append(Alarm(name, title, step, look.since, sentence, evidence, self._remedies(remedies)))
            (self._present.add if found else self._present.discard)(name)
        return raised

    def not_finite(self, what: str, step: int, since: int) -> Alarm:
        """The alarm for a number that is none: `what` says which; at the step `since` all was sound."""
        title, _, remedies = _SIGNS["divergence"]
        sentence = "The networks hold numbers that are none, which no further step can mend."
        return Alarm("divergence", title, step, since, sentence, what, self._remedies(remedies))

    def _window(self, lines: Sequence[dict[str, Any]], step: int, fewest: int) -> list[dict[str, Any]]:
        """The lines of the last `alarm_patience` steps, at least `fewest`; none while the training is too young."""
        first = bisect.bisect_right(lines, step - self._config.alarm_patience, key=lambda line: line["step"])
        first = min(first, len(lines) - fewest)
        return [] if first < 0 or step < self._config.alarm_patience else lines[first:]

    def _remedies(self, remedies: Callable[[Config], Iterator[str]]) -> tuple[str, ...]:
        return tuple(itertools.islice(remedies(dataclasses.replace(self._config, lr_dis=self._lr_dis)), 3))


@dataclasses.dataclass(frozen=True)
class _Look:
    """What a sign is judged by: the window of each log, empty while the training is too young."""

    config: Config
    step: int
    metrics: list[dict[str, Any]]
    health: list[dict[str, Any]]
    first_gradient: float
    first_health: dict[str, Any]
    best_diversity: float

    @property
    def since(self) -> int:
        """The step after which the evidence lies."""
        return max(
            0, min(self.step - self.config.alarm_patience, *(w[0]["step"] for w in (self.metrics, self.health) if w))
        )

    def growth(self, network: str) -> float:
        """Of the largest singular values of "gen" or "dis" since the first look: the median over layers; 1 at first."""
        if not self.health:
            return 1.0
        now, first = (np.asarray(line.get(f"norms_{network}", [])) for line in (self.health[-1], self.first_health))
        return float(np.median(now / first)) if len(now) and now.shape == first.shape else 1.0

    def of(self, name: str) -> float:
        """The median of a figure over its window; NaN where it was not measured, of which no comparison is true."""
        return _median(self.metrics if self.metrics and name in self.metrics[-1] else self.health, name)


def _median(lines: Sequence[dict[str, Any]], name: str) -> float:
    values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
    return float(np.median(values)) if values else math.nan


_Found = tuple[str, str] | None  # a sentence, and the evidence


def _non_convergence(look: _Look) -> _Found:
    loss, gradient = look.config.loss, look.of("grad_norm_gen")
    real, before, after = (look.of(f"score_{name}") for name in ("real", "fake_before", "fake_after"))
    scores = f"D(x) {real:.3g}; D(G(z)) {before:.3g}, and {after:.3g} after the discriminator's update"
    if loss == "bce":
        target = look.config.real_label * (1 - look.config.label_flip)
        won = real > _WON * target and max(before, after) < 1 - _WON
    else:
        won = loss == "hinge" and look.of("loss_dis") < _WON_HINGE
        scores += f"; its loss {look.of('loss_dis'):.2g}"
    if won or gradient < _VANISHED * look.first_gradient:
        return (
            "The discriminator overpowers the generator, which learns next to nothing from it.",
            f"{scores}; the norm of the generator's gradient {gradient:.2g}, at first {look.first_gradient:.2g}",
        )
    if loss != "wgan-gp" and after > max(_LOST, real):  # a critic's logits have no zero
        return "The generator overpowers the discriminator, which takes fakes for real and teaches nothing.", scores
    return None


def _balance(c: Config) -> Iterator[str]:
    yield f"lower lr_dis, now {c.lr_dis:g}, to {c.lr_dis / 4:g} (on_alarm=rollback does so by itself)"
    if c.arch == "dcgan":
        yield "arch=sngan, whose discriminator cannot become steep"
    if c.loss == "bce" and c.real_label == 1:
        yield "real_label=0.9, so that the discriminator is never certain"
    yield "dis_dropout=0.2, so that it sees less"


def _mode_collapse(look: _Look) -> _Found:
    fakes, reals, near = look.of("diversity"), look.of("diversity_reals"), look.of("near_duplicates")
    evidence = (
        f"the mean distance of two fakes is {fakes:.3g}, of two reals {reals:.3g}, and at its best was "
        f"{look.best_diversity:.3g}; {near:.0%} of the fakes have a near-duplicate among 64"
    )
    if fakes < _ALIKE * reals or near > _NEAR_DUPLICATES:
        return "The generator makes nearly the same image whatever its input.", evidence
    if fakes < min(_FALLEN * look.best_diversity, reals / 2):
        return "The generator makes ever fewer kinds of images.", evidence
    return None


def _variety(c: Config) -> Iterator[str]:
    if c.lr_dis == c.lr_gen:
        yield f"lower lr_gen, now {c.lr_gen:g}, to {c.lr_gen / 2:g}, so that the discriminator keeps up"
    else:
        yield f"bring lr_gen, now {c.lr_gen:g}, and lr_dis, now {c.lr_dis:g}, nearer to each other"
    if c.arch == "dcgan":
        yield "arch=sngan"
    if c.loss != "wgan-gp":
        yield "loss=wgan-gp with dis_steps=5, which collapses less"
    yield f"raise batch_size, now {c.batch_size}, so that a batch shows the discriminator how alike fakes are"


def _oscillation(look: _Look) -> _Found:
    if look.config.loss == "wgan-gp":
        return None
    scored = (line for line in look.metrics if "score_real" in line)
    told = [line["score_real"] - line["score_fake_before"] for line in scored]
    sides = [value > _TOLD_APART for value in told if not _NOT_TOLD_APART <= value <= _TOLD_APART]
    swings = sum(a != b for a, b in itertools.pairwise(sides))
    if swings < _SWINGS:
        return None
    return (
        "The networks chase each other: the discriminator tells fakes from reals, then does not, and again.",
        f"D(x) - D(G(z)) crossed from above {_TOLD_APART} to below {_NOT_TOLD_APART} or back {swings} times in "
        f"{len(told)} lines of metrics.jsonl, between {min(told):.2g} and {max(told):.2g}",
    )


def _divergence(look: _Look) -> _Found:
    losses = {name: look.of(name) for name in ("loss_dis", "loss_gen")}
    values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    if look.config.loss != "wgan-gp" and max(map(abs, losses.values())) > _RUNAWAY:
        return "The losses run away: the networks' answers grow without end.", values
    growth = {title: look.growth(name) for name, title in (("dis", "discriminator"), ("gen", "generator"))}
    fastest = max(growth, key=growth.get)
    if growth[fastest] > _GROWN:
        return (
            f"The {fastest}'s weights run away: its steps are too long, and each undoes what the one before taught.",
            f"the largest singular values of its kernels are {growth[fastest]:.3g} times the first ones (median over "
            f"the layers); {values}",
        )
    return None


def _slower(c: Config) -> Iterator[str]:
    for name in ("lr_dis", "lr_gen"):
        rate = getattr(c, name)
        if rate >= max(c.lr_dis, c.lr_gen) / 10:  # the other is not at fault
            yield f"lower {name}, now {rate:g}, to {min(rate / 4, _USUAL_RATE):g}"
    if c.adam_beta1 > 0.5:
        yield f"lower adam_beta1, now {c.adam_beta1:g}, to 0.5 or 0"
    if c.dtype != "float32":
        yield "dtype=float32"
    if c.arch == "dcgan":
        yield "arch=sngan, whose discriminator cannot become steep"
    yield f"raise batch_size, now {c.batch_size}, for steadier gradients"


def _overfitting(look: _Look) -> _Found:
    seen, unseen, fakes = (look.of(f"logit_{name}") for name in ("train", "held_out", "fakes"))
    if not (seen - fakes > _CERTAIN and seen - unseen > _OVERFITTED * (seen - fakes)):
        return None
    return (
        "The discriminator knows the training images by heart: it takes reals it has not seen for fakes, more or less.",
        f"mean logit of training images {seen:.3g}, of held-out images {unseen:.3g}, of fakes {fakes:.3g}: "
        f"{(seen - unseen) / (seen - fakes):.0%} of the way, where {_OVERFITTED:.0%} is too far",
    )


def _more_images(c: Config) -> Iterator[str]:
    if not c.data.horizontal_flip:
        yield "data.horizontal_flip=True, which doubles the images"
    if c.data.label:
        yield "data.label='', to learn from the other classes too"
    yield "stop here: evaluate_every_steps keeps the best generator by held-out images in best/"
    yield f"lower dis_features, now {c.dis_features}, or set dis_dropout=0.2"


def _copying(look: _Look) -> _Found:
    share, reals = look.of("copies"), look.of("copies_reals")
    if not share > _COPIES + reals:
        return None
    return (
        "The generator copies training images, which are then patients' own images.",
        f"{share:.0%} of the fakes are less than half as far from one training image as from any other; "
        f"of the training images themselves {reals:.0%}",
    )


def _less_capacity(c: Config) -> Iterator[str]:
    yield "do not share these samples; python evaluate.py shows the closest pairs"
    yield "stop earlier: checkpoints/ and best/ hold earlier generators"
    yield from _more_images(c)


_SIGNS: dict[str, tuple[str, Callable[[_Look], _Found], Callable[[Config], Iterator[str]]]] = {
    "non_convergence": ("Non-convergence", _non_convergence, _balance),
    "mode_collapse": ("Mode collapse", _mode_collapse, _variety),
    "oscillation": ("Oscillation", _oscillation, _slower),
    "divergence": ("Divergence", _divergence, _slower),
    "overfitting": ("Overfitting of the discriminator", _overfitting, _more_images),
    "copies": ("Copies of training images", _copying, _less_capacity),
}
