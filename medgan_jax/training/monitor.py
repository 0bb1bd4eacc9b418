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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from medgan_jax.config import Config

_METRICS_LINES = 10  # at least so many lines make a window, however rare they are
_HEALTH_LINES = 4
_WON = 0.98  # of the target for reals, and 1 - _WON for fakes: the discriminator is next to certain
_WON_HINGE, _LOST_HINGE = 0.02, 1.9  # the hinge loss, which is 2 where nothing is told apart
_LOST = 0.05  # of the target, between reals and fakes: the discriminator guesses
_VANISHED = 1e-3  # of the generator's first gradients
_ALIKE = 0.07  # of the reals' diversity; a young training that is sound has about 0.15
_FALLEN = 0.4  # of the training's own best diversity
_NEAR_DUPLICATES = 0.5  # share of the fakes
_DRIFT = 1.0  # of the reals' diversity, from one look to the next
_RUNAWAY = 100.0  # a loss, in nats
_GROWN = 8.0  # times the first weights, layer by layer; 1 to 3 in ten thousand steps that are sound
_OVERFITTED = 0.6  # r_v of Karras et al. 2020 (arXiv:2006.06676), who keep theirs below it
_CERTAIN = 1.0  # logits between reals and fakes, below which r_v is noise
_USUAL_RATE = 2e-4  # of the published networks
_DROPOUT = 0.2  # that remedies speak of
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
            self._best_diversity = max(self._best_diversity, _median(health, "diversity"))
        look = _Look(
            self._config,
            step,
            self._window(self._metrics, step, _METRICS_LINES),
            health,
            first_gradient=_median(self._first_gradients, "grad_norm_gen"),
            first_health=self._health[0],
            best_diversity=self._best_diversity,
        )
        raised = []
        for name, (_, sign, _) in _SIGNS.items():
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
        return self._alarm("divergence", step, since, _Found(sentence, what, too_fast=_faster(self._config)))

    def _alarm(self, name: str, step: int, since: int, found: "_Found") -> Alarm:
        title, _, remedies = _SIGNS[name]
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
        return _median(self.metrics if any(name in line for line in self.metrics) else self.health, name)


def _median(lines: Sequence[dict[str, Any]], name: str) -> float:
    values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
    return float(np.median(values)) if values else math.nan


class _Found(NamedTuple):
    """A sign that is there."""

    sentence: str
    evidence: str
    too_fast: str = "lr_dis"


def _faster(c: Config) -> str:
    return "lr_gen" if c.lr_gen > c.lr_dis else "lr_dis"


def _non_convergence(look: _Look) -> _Found | None:
    loss, gradient = look.config.loss, look.of("grad_norm_gen")
    real, before, after = (look.of(f"score_{name}") for name in ("real", "fake_before", "fake_after"))
    scores = f"D(x) {real:.3g}; D(G(z)) {before:.3g}, and {after:.3g} after the discriminator's update"
    won = lost = False  # a critic is meant to win
    if loss == "bce":
        target = look.config.real_label * (1 - look.config.label_flip)
        won = real > _WON * target and max(before, after) < 1 - _WON
        lost = real - before < _LOST * target
    elif loss == "hinge":
        dis = look.of("loss_dis")
        won, lost = dis < _WON_HINGE, dis > _LOST_HINGE
        scores += f"; its loss {dis:.2g}"
    if won or gradient < _VANISHED * look.first_gradient:
        if not math.isnan(gradient):
            scores += f"; the norm of the generator's gradient {gradient:.2g}, at first {look.first_gradient:.2g}"
        return _Found("The discriminator overpowers the generator, which learns next to nothing from it.", scores)
    if lost:
        return _Found(
            "The discriminator cannot tell fakes from reals, and so teaches nothing: the generator overpowers it, or "
            "it learns too slowly.",
            scores,
            too_fast="lr_gen",
        )
    return None


def _balance(c: Config, too_fast: str) -> Iterator[str]:
    slow = "lr_dis" if too_fast == "lr_gen" else "lr_gen"
    if getattr(c, slow) < _USUAL_RATE >= getattr(c, too_fast):
        yield f"raise {slow}, now {getattr(c, slow):g}, to {_USUAL_RATE:g}"
    else:
        yield _lower(c, too_fast)
    if too_fast == "lr_gen":
        if c.dis_steps == 1:
            yield "dis_steps=2, so that the discriminator catches up"
        yield f"raise dis_features, now {c.dis_features}"
        return
    if c.dis_steps > 1:
        yield f"lower dis_steps, now {c.dis_steps}, to 1"
    if c.arch == "dcgan":
        yield "arch=sngan, whose discriminator cannot become steep"
    if c.loss == "bce" and c.real_label == 1:
        yield "real_label=0.9, so that the discriminator is never certain"
    if c.dis_dropout < _DROPOUT:
        yield f"dis_dropout={_DROPOUT:g}, so that it sees less"
    yield f"raise gen_features, now {c.gen_features}"


def _mode_collapse(look: _Look) -> _Found | None:
    fakes, reals, near = look.of("diversity"), look.of("diversity_reals"), look.of("near_duplicates")
    evidence = (
        f"two fakes differ by {fakes:.3g}, two reals by {reals:.3g}, and two fakes at their best by "
        f"{look.best_diversity:.3g}; {near:.0%} of the fakes have a near-duplicate among 64"
    )
    if fakes < _ALIKE * reals or near > _NEAR_DUPLICATES:
        return _Found("The generator makes nearly the same image whatever its input.", evidence)
    if fakes < min(_FALLEN * look.best_diversity, reals / 2):
        return _Found("The generator makes ever fewer kinds of images.", evidence)
    return None


def _variety(c: Config, _: str) -> Iterator[str]:
    if c.arch == "dcgan":
        yield "arch=sngan"
    if c.loss != "wgan-gp":
        targets = ", real_label=1 and label_flip=0" if c.real_label != 1 or c.label_flip else ""
        yield f"loss=wgan-gp with dis_steps=5{targets}, which collapses less"
    if c.lr_dis != c.lr_gen:
        yield f"bring lr_gen, now {c.lr_gen:g}, and lr_dis, now {c.lr_dis:g}, nearer to each other"
    elif c.lr_gen < _USUAL_RATE / 10:
        yield f"raise lr_gen and lr_dis, now {c.lr_gen:g}, to {_USUAL_RATE:g}"
    yield f"raise batch_size, now {c.batch_size}, so that a batch shows the discriminator how alike fakes are"
    yield "ema_decay=0.999, to sample from an average of generators" if not c.ema_decay else "another seed"


def _oscillation(look: _Look) -> _Found | None:
    drift, reals, fakes = look.of("drift"), look.of("diversity_reals"), look.of("diversity")
    if not drift > _DRIFT * reals:
        return None
    return _Found(
        "The networks chase each other: the generator changes all its images again and again, and settles on none.",
        f"from one look to the next the image of a latent changed by {drift:.3g}; two fakes differ by {fakes:.3g}, two "
        f"reals by {reals:.3g}",
    )


def _steadier(c: Config, _: str) -> Iterator[str]:
    yield f"lower lr_gen, now {c.lr_gen:g}, and lr_dis, now {c.lr_dis:g}"
    if c.adam_beta1 > 0.5:
        yield f"lower adam_beta1, now {c.adam_beta1:g}, to 0.5 or 0"
    if c.simultaneous:
        yield "simultaneous=False"
    if not c.ema_decay:
        yield "ema_decay=0.999, to sample from an average that does not swing"
    yield f"raise batch_size, now {c.batch_size}, for steadier gradients"


def _divergence(look: _Look) -> _Found | None:
    losses = {name: look.of(name) for name in ("loss_dis", "loss_gen")}
    values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    if look.config.loss != "wgan-gp" and max(map(abs, losses.values())) > _RUNAWAY:
        sentence = "The losses run away: the networks' answers grow without end."
        return _Found(sentence, values, too_fast=_faster(look.config))
    for network, title in (("dis", "discriminator"), ("gen", "generator")):
        growth = look.growth(network)
        if growth > _GROWN:
            return _Found(
                f"The {title}'s weights run away: its steps are too long, and each undoes what the one before taught.",
                f"the largest singular values of its kernels are {growth:.3g} times the first ones (median over the "
                f"layers); {values}",
                too_fast=f"lr_{network}",
            )
    return None


def _slower(c: Config, too_fast: str) -> Iterator[str]:
    yield _lower(c, too_fast)
    if c.adam_beta1 > 0.5:
        yield f"lower adam_beta1, now {c.adam_beta1:g}, to 0.5 or 0"
    if c.dtype != "float32":
        yield "dtype=float32"
    if c.arch == "dcgan":
        yield "arch=sngan, whose discriminator cannot become steep"
    yield f"raise batch_size, now {c.batch_size}, for steadier gradients"


def _lower(c: Config, rate: str) -> str:
    now = getattr(c, rate)
    by_itself = "" if c.on_alarm == "rollback" else " (on_alarm=rollback lowers it by itself)"
    return f"lower {rate}, now {now:g}, to {min(now / 4, _USUAL_RATE):g}{by_itself}"


def _overfitting(look: _Look) -> _Found | None:
    seen, unseen, fakes = (look.of(f"logit_{name}") for name in ("train", "held_out", "fakes"))
    if not (seen - fakes > _CERTAIN and seen - unseen > _OVERFITTED * (seen - fakes)):
        return None
    return _Found(
        "The discriminator knows the training images by heart: reals that it has not seen it judges more like fakes.",
        f"mean logit of training images {seen:.3g}, of held-out images {unseen:.3g}, of fakes {fakes:.3g}: "
        f"{(seen - unseen) / (seen - fakes):.0%} of the way, where {_OVERFITTED:.0%} is too far",
    )


def _less_by_heart(c: Config, _: str) -> Iterator[str]:
    yield from _more_images(c)
    yield _shorter(c)


def _more_images(c: Config) -> Iterator[str]:
    if not c.data.horizontal_flip:
        yield "data.horizontal_flip=True, which doubles the images"
    if c.data.label:
        yield "data.label='', to learn from the other classes too"
    if c.data.holdout_fraction and not c.evaluate_every_steps:
        yield (
            f"evaluate_every_steps={c.checkpoint_every_steps}, which keeps the best generator so far in best/, by 20 "
            "or more held-out images"
        )
    if c.dis_dropout < _DROPOUT:
        yield f"dis_dropout={_DROPOUT:g}, so that the discriminator sees less"
    yield f"lower dis_features, now {c.dis_features}"


def _shorter(c: Config) -> str:
    name = "num_steps" if c.num_steps else "num_epochs"
    return f"lower {name}, now {getattr(c, name)}, in a new workdir, to end before this"


def _copying(look: _Look) -> _Found | None:
    share, reals = look.of("copies"), look.of("copies_reals")
    if not share > _COPIES + reals:
        return None
    return _Found(
        "The generator copies training images: look at the closest pairs with evaluate.py before you share any sample.",
        f"{share:.0%} of the fakes are less than half as far from one training image as from any other; "
        f"of the training images themselves {reals:.0%}",
    )


def _less_capacity(c: Config, _: str) -> Iterator[str]:
    yield _shorter(c)
    yield from _more_images(c)


_SIGNS: dict[str, tuple[str, Callable[[_Look], _Found | None], Callable[[Config, str], Iterator[str]]]] = {
    "non_convergence": ("Non-convergence", _non_convergence, _balance),
    "mode_collapse": ("Mode collapse", _mode_collapse, _variety),
    "oscillation": ("Oscillation", _oscillation, _steadier),
    "divergence": ("Divergence", _divergence, _slower),
    "overfitting": ("Overfitting of the discriminator", _overfitting, _less_by_heart),
    "copies": ("Copies of training images", _copying, _less_capacity),
}
