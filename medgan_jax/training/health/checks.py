"""The six health checks. Each recognises one kind of failure and suggests remedies; docs/alarms.md explains them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from medgan_jax.config import Config

# Non-convergence: the discriminator is nearly always right, or hardly better than chance.
_DIS_WINS, _DIS_WINS_HINGE = 0.98, 0.02  # D(x) as a share of its target; the hinge loss
_DIS_GUESSES, _DIS_GUESSES_HINGE = 0.05, 1.9  # D(x) - D(G(z)) as a share of the target; the hinge loss, 2 for guesses
_VANISHED_GRADIENT = 1e-3  # of the generator's first gradient norms
# Mode collapse.
_LOW_DIVERSITY = 0.07  # of the training images' diversity; sound trainings have about 0.15 early on
_LOST_DIVERSITY = 0.4  # of the training's own best diversity
_NEAR_DUPLICATES = 0.5  # share of the fakes
# Oscillation.
_DRIFT = 1.0  # of the training images' diversity
# Divergence.
_LARGE_LOSS = 100.0  # nats
_GROWTH = 8.0  # of the kernels' norms since the first check; 1 to 4 in 10,000 sound steps
# Overfitting: the heuristic r_v of Karras et al. 2020 (arXiv:2006.06676), who keep theirs below this value.
_OVERFITTED = 0.6
_MIN_LOGIT_GAP = 1.0  # between training images and fakes; r_v is noise below it
# Memorization.
_MEMORIZED = 0.25  # share of the fakes, above that of the training images

_USUAL_LR = 2e-4  # of the published networks
_DROPOUT = 0.2  # suggested by remedies


@dataclasses.dataclass(frozen=True)
class HealthWindow:
    """The recent lines of both logs, which the checks are evaluated on."""

    config: Config  # with the current learning rates
    step: int
    metrics: list[dict[str, Any]]  # lines of metrics.jsonl; empty while there are too few steps
    health: list[dict[str, Any]]  # lines of health.jsonl; empty while there are too few steps
    first_gradient: float  # norm of the generator's gradient at the start of the training
    first_health: dict[str, Any]  # the first line of health.jsonl
    best_diversity: float  # the highest median so far

    @property
    def since(self) -> int:
        """The step after which all the evidence lies."""
        first_steps = (lines[0]["step"] for lines in (self.metrics, self.health) if lines)
        return max(0, min(self.step - self.config.alarm_patience, *first_steps))

    def median(self, name: str) -> float:
        """The median of a value of either log; NaN, for which every comparison is false, where it was not measured."""
        return median(self.metrics if any(name in line for line in self.metrics) else self.health, name)

    def growth(self, network: str) -> float:
        """How much the kernels' norms of "gen" or "dis" grew since the first check: a ratio, median over the layers."""
        if not self.health:
            return 1.0
        now, first = (np.asarray(line[f"norms_{network}"]) for line in (self.health[-1], self.first_health))
        return float(np.median(now / first))


def median(lines: Sequence[dict[str, Any]], name: str) -> float:
    """The median of a value over the lines of a log that have it; NaN where none has."""
    values = [line[name] for line in lines if name in line]
    return float(np.median(values)) if values else math.nan


class Finding(NamedTuple):
    """A failure that a check found."""

    sentence: str
    evidence: str
    lower_lr: str = "lr_dis"  # the learning rate that a rollback lowers


@dataclasses.dataclass(frozen=True)
class Check:
    """One health check, and what to change where it fails."""

    name: str  # as in alarms.jsonl
    title: str  # for people
    find: Callable[[HealthWindow], Finding | None]  # None: nothing is wrong
    remedies: Callable[[Config, str], Iterator[str]]  # given the learning rate to lower; the most promising first


def higher_lr(c: Config) -> str:
    """The name of the higher learning rate; `lr_dis` where they are equal."""
    return "lr_gen" if c.lr_gen > c.lr_dis else "lr_dis"


def _find_non_convergence(window: HealthWindow) -> Finding | None:
    loss, gradient = window.config.loss, window.median("grad_norm_gen")
    real, before, after = (window.median(f"score_{name}") for name in ("real", "fake_before", "fake_after"))
    evidence = f"D(x) {real:.3g}; D(G(z)) {before:.3g}, and {after:.3g} after the discriminator's update"
    dis_wins = dis_guesses = False  # with wgan-gp the critic is meant to win
    if loss == "bce":
        target = window.config.real_label * (1 - window.config.label_flip)
        dis_wins = real > _DIS_WINS * target and max(before, after) < 1 - _DIS_WINS
        dis_guesses = real - before < _DIS_GUESSES * target
    elif loss == "hinge":
        loss_dis = window.median("loss_dis")
        dis_wins, dis_guesses = loss_dis < _DIS_WINS_HINGE, loss_dis > _DIS_GUESSES_HINGE
        evidence += f"; its loss {loss_dis:.2g}"
    if dis_wins or gradient < _VANISHED_GRADIENT * window.first_gradient:
        if not math.isnan(gradient):
            evidence += f"; the norm of the generator's gradient {gradient:.2g}, at first {window.first_gradient:.2g}"
        return Finding("The discriminator is too strong: the generator learns next to nothing from it.", evidence)
    if dis_guesses:
        return Finding(
            "The discriminator cannot tell fakes from reals, so the generator learns nothing from it: the generator is "
            "too strong, or the discriminator learns too slowly.",
            evidence,
            lower_lr="lr_gen",
        )
    return None


def _balance_networks(c: Config, lower_lr: str) -> Iterator[str]:
    other = "lr_dis" if lower_lr == "lr_gen" else "lr_gen"
    if getattr(c, other) < _USUAL_LR >= getattr(c, lower_lr):
        yield f"raise {other}, now {getattr(c, other):g}, to {_USUAL_LR:g}"
    else:
        yield _lower(c, lower_lr)
    if lower_lr == "lr_gen":
        if c.dis_steps == 1:
            yield "dis_steps=2, so that the discriminator learns faster"
        if c.dis == "patch":
            yield f"raise dis_features, now {c.dis_features}"
        return
    if c.dis_steps > 1:
        yield f"lower dis_steps, now {c.dis_steps}, to 1"
    if c.arch == "dcgan" and c.dis == "patch":
        yield "arch=sngan, whose spectral normalization limits the discriminator"
    if c.loss == "bce" and c.real_label == 1:
        yield "real_label=0.9, so that the discriminator is never certain"
    if c.dis_dropout < _DROPOUT and c.dis == "patch":
        yield f"dis_dropout={_DROPOUT:g}, which weakens the discriminator"
    yield f"raise gen_features, now {c.gen_features}"


def _find_mode_collapse(window: HealthWindow) -> Finding | None:
    fakes, reals, near = (window.median(name) for name in ("diversity", "diversity_reals", "near_duplicates"))
    evidence = (
        f"two fakes differ by {fakes:.3g}, two reals by {reals:.3g}, and two fakes at their best by "
        f"{window.best_diversity:.3g}; {near:.0%} of the fakes have a near-duplicate among 64"
    )
    if fakes < _LOW_DIVERSITY * reals or near > _NEAR_DUPLICATES:
        return Finding("The generator makes nearly the same image from every latent.", evidence)
    if fakes < min(_LOST_DIVERSITY * window.best_diversity, reals / 2):
        return Finding("The generator makes fewer and fewer kinds of images.", evidence)
    return None


def _raise_diversity(c: Config, _: str) -> Iterator[str]:
    if c.arch == "dcgan" and c.dis == "patch":
        yield "arch=sngan"
    if c.loss != "wgan-gp" and c.dis == "patch":
        targets = ", real_label=1 and label_flip=0" if c.real_label != 1 or c.label_flip else ""
        yield f"loss=wgan-gp with dis_steps=5{targets}, which collapses less"
    if c.lr_dis != c.lr_gen:
        yield f"bring lr_gen, now {c.lr_gen:g}, and lr_dis, now {c.lr_dis:g}, nearer to each other"
    elif c.lr_gen < _USUAL_LR / 10:
        yield f"raise lr_gen and lr_dis, now {c.lr_gen:g}, to {_USUAL_LR:g}"
    yield f"raise batch_size, now {c.batch_size}, so that a batch shows the discriminator how alike fakes are"
    yield "ema_decay=0.999, to sample from an average of generators" if not c.ema_decay else "another seed"


def _find_oscillation(window: HealthWindow) -> Finding | None:
    drift, reals, fakes = (window.median(name) for name in ("drift", "diversity_reals", "diversity"))
    if not drift > _DRIFT * reals:
        return None
    return Finding(
        "The training oscillates: the generator changes all its images again and again and does not settle.",
        f"from one health check to the next the image of a latent changed by {drift:.3g}; two fakes differ by "
        f"{fakes:.3g}, two reals by {reals:.3g}",
    )


def _damp_oscillation(c: Config, _: str) -> Iterator[str]:
    yield f"lower lr_gen, now {c.lr_gen:g}, and lr_dis, now {c.lr_dis:g}"
    if c.adam_beta1 > 0.5:
        yield f"lower adam_beta1, now {c.adam_beta1:g}, to 0.5 or 0"
    if c.simultaneous:
        yield "simultaneous=False"
    if not c.ema_decay:
        yield "ema_decay=0.999, to sample from an average that does not oscillate"
    yield f"raise batch_size, now {c.batch_size}, for less noisy gradients"


def _find_divergence(window: HealthWindow) -> Finding | None:
    losses = {name: window.median(name) for name in ("loss_dis", "loss_gen")}
    values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    if window.config.loss != "wgan-gp" and max(map(abs, losses.values())) > _LARGE_LOSS:
        return Finding("The losses grow without limit.", values, lower_lr=higher_lr(window.config))
    for network, title in (("dis", "discriminator"), ("gen", "generator")):
        growth = window.growth(network)
        if growth > _GROWTH:
            return Finding(
                f"The {title}'s weights grow without limit: its updates are too large.",
                f"the largest singular values of its kernels are {growth:.3g} times the first ones (median over the "
                f"layers); {values}",
                lower_lr=f"lr_{network}",
            )
    return None


def _smaller_updates(c: Config, lower_lr: str) -> Iterator[str]:
    yield _lower(c, lower_lr)
    if c.adam_beta1 > 0.5:
        yield f"lower adam_beta1, now {c.adam_beta1:g}, to 0.5 or 0"
    if c.dtype != "float32":
        yield "dtype=float32"
    if c.arch == "dcgan" and c.dis == "patch":
        yield "arch=sngan, whose spectral normalization limits the discriminator"
    yield f"raise batch_size, now {c.batch_size}, for less noisy gradients"


def _lower(c: Config, name: str) -> str:
    now = getattr(c, name)
    automatic = "" if c.on_alarm == "rollback" else " (on_alarm=rollback lowers it automatically)"
    return f"lower {name}, now {now:g}, to {min(now / 4, _USUAL_LR):g}{automatic}"


def _find_overfitting(window: HealthWindow) -> Finding | None:
    train, held_out, fakes = (window.median(f"logit_{name}") for name in ("train", "held_out", "fakes"))
    gap = train - fakes
    if not (gap > _MIN_LOGIT_GAP and train - held_out > _OVERFITTED * gap):
        return None
    return Finding(
        "The discriminator has memorized the training images: its logits of held-out reals are closer to those of "
        "fakes.",
        f"mean logit of training images {train:.3g}, of held-out images {held_out:.3g}, of fakes {fakes:.3g}: "
        f"held-out images are {(train - held_out) / gap:.0%} of the way to fakes, and the limit is {_OVERFITTED:.0%}",
    )


def _reduce_overfitting(c: Config, _: str) -> Iterator[str]:
    yield from _hinder_memorizing(c)
    yield _fewer_steps(c)


def _hinder_memorizing(c: Config) -> Iterator[str]:
    if not c.augment.translation:
        yield "augment.translation=0.125, so that the discriminator rarely sees the same image twice"
    elif not (c.augment.flips or c.data.any_orientation):
        yield "data.any_orientation=True, if images have no up: the discriminator rarely sees the same one twice"
    if c.data.holds_out() and not c.evaluate_every_steps:
        yield (
            f"evaluate_every_steps={c.checkpoint_every_steps}, which keeps the best generator so far in best/, by 20 "
            "or more held-out images"
        )
    if c.data.class_filter:
        yield "data.class_filter='' with conditional=True, to learn from the other classes too"
    if c.dis == "projected":
        return
    if c.dis_dropout < _DROPOUT:
        yield f"dis_dropout={_DROPOUT:g}, which weakens the discriminator"
    yield f"lower dis_features, now {c.dis_features}"


def _fewer_steps(c: Config) -> str:
    name = "num_steps" if c.num_steps else "num_epochs"
    return f"lower {name}, now {getattr(c, name)}, in a new workdir, to end before this"


def _find_memorization(window: HealthWindow) -> Finding | None:
    fakes, reals = window.median("memorization"), window.median("memorization_reals")
    if not fakes > _MEMORIZED + reals:
        return None
    return Finding(
        "The generator reproduces training images: inspect the closest pairs with evaluate.py before you share any "
        "sample.",
        f"{fakes:.0%} of the fakes are less than half as far from one training image as from any other; "
        f"of the training images themselves {reals:.0%}",
    )


def _reduce_memorization(c: Config, _: str) -> Iterator[str]:
    yield _fewer_steps(c)
    yield from _hinder_memorizing(c)


DIVERGENCE = Check("divergence", "Divergence", _find_divergence, _smaller_updates)
CHECKS = (
    Check("non_convergence", "Non-convergence", _find_non_convergence, _balance_networks),
    Check("mode_collapse", "Mode collapse", _find_mode_collapse, _raise_diversity),
    Check("oscillation", "Oscillation", _find_oscillation, _damp_oscillation),
    DIVERGENCE,
    Check("overfitting", "Overfitting of the discriminator", _find_overfitting, _reduce_overfitting),
    Check("memorization", "Memorization of training images", _find_memorization, _reduce_memorization),
)
