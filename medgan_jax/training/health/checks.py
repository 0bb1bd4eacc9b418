"""The six signs of a training that goes wrong, each with what may mend it. docs/alarms.md explains them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from medgan_jax.config import Config

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
class Look:
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
        return median(self.metrics if any(name in line for line in self.metrics) else self.health, name)


def median(lines: Sequence[dict[str, Any]], name: str) -> float:
    """Of a figure over lines of a log; NaN where none has it."""
    values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
    return float(np.median(values)) if values else math.nan


class Found(NamedTuple):
    """A sign that is there."""

    sentence: str
    evidence: str
    too_fast: str = "lr_dis"


def faster(c: Config) -> str:
    """The name of the higher rate, `lr_dis` where they are equal."""
    return "lr_gen" if c.lr_gen > c.lr_dis else "lr_dis"


def _non_convergence(look: Look) -> Found | None:
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
        return Found("The discriminator overpowers the generator, which learns next to nothing from it.", scores)
    if lost:
        return Found(
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


def _mode_collapse(look: Look) -> Found | None:
    fakes, reals, near = look.of("diversity"), look.of("diversity_reals"), look.of("near_duplicates")
    evidence = (
        f"two fakes differ by {fakes:.3g}, two reals by {reals:.3g}, and two fakes at their best by "
        f"{look.best_diversity:.3g}; {near:.0%} of the fakes have a near-duplicate among 64"
    )
    if fakes < _ALIKE * reals or near > _NEAR_DUPLICATES:
        return Found("The generator makes nearly the same image whatever its input.", evidence)
    if fakes < min(_FALLEN * look.best_diversity, reals / 2):
        return Found("The generator makes ever fewer kinds of images.", evidence)
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


def _oscillation(look: Look) -> Found | None:
    drift, reals, fakes = look.of("drift"), look.of("diversity_reals"), look.of("diversity")
    if not drift > _DRIFT * reals:
        return None
    return Found(
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


def _divergence(look: Look) -> Found | None:
    losses = {name: look.of(name) for name in ("loss_dis", "loss_gen")}
    values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    if look.config.loss != "wgan-gp" and max(map(abs, losses.values())) > _RUNAWAY:
        sentence = "The losses run away: the networks' answers grow without end."
        return Found(sentence, values, too_fast=faster(look.config))
    for network, title in (("dis", "discriminator"), ("gen", "generator")):
        growth = look.growth(network)
        if growth > _GROWN:
            return Found(
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


def _overfitting(look: Look) -> Found | None:
    seen, unseen, fakes = (look.of(f"logit_{name}") for name in ("train", "held_out", "fakes"))
    if not (seen - fakes > _CERTAIN and seen - unseen > _OVERFITTED * (seen - fakes)):
        return None
    return Found(
        "The discriminator knows the training images by heart: reals that it has not seen it judges more like fakes.",
        f"mean logit of training images {seen:.3g}, of held-out images {unseen:.3g}, of fakes {fakes:.3g}: "
        f"{(seen - unseen) / (seen - fakes):.0%} of the way, where {_OVERFITTED:.0%} is too far",
    )


def _less_by_heart(c: Config, _: str) -> Iterator[str]:
    yield from _more_images(c)
    yield _shorter(c)


def _more_images(c: Config) -> Iterator[str]:
    if not c.augment.translation:
        yield "augment.translation=0.125, so that the discriminator hardly sees an image twice"
    elif not c.augment.flips:
        yield "augment.flips=True, so that the discriminator hardly sees an image twice"
    if c.data.class_filter:
        yield "data.class_filter='' with conditional=True, to learn from the other classes too"
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


def _copying(look: Look) -> Found | None:
    share, reals = look.of("copies"), look.of("copies_reals")
    if not share > _COPIES + reals:
        return None
    return Found(
        "The generator copies training images: look at the closest pairs with evaluate.py before you share any sample.",
        f"{share:.0%} of the fakes are less than half as far from one training image as from any other; "
        f"of the training images themselves {reals:.0%}",
    )


def _less_capacity(c: Config, _: str) -> Iterator[str]:
    yield _shorter(c)
    yield from _more_images(c)


SIGNS: dict[str, tuple[str, Callable[[Look], Found | None], Callable[[Config, str], Iterator[str]]]] = {
    "non_convergence": ("Non-convergence", _non_convergence, _balance),
    "mode_collapse": ("Mode collapse", _mode_collapse, _variety),
    "oscillation": ("Oscillation", _oscillation, _steadier),
    "divergence": ("Divergence", _divergence, _slower),
    "overfitting": ("Overfitting of the discriminator", _overfitting, _less_by_heart),
    "copies": ("Copies of training images", _copying, _less_capacity),
}
