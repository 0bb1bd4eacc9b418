"""How good classifiers are, and whether one is better than another: figures, paired intervals, and the verdict.

All figures take the weight of each image, so that a bootstrap computes nothing twice. A figure of a trial is the mean
over its folds, whose classifiers are different ones, and over the seeds of the classifiers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.proving.arms import Arm

SPECIFICITY = 0.9
REPLICATES = 1000
BINS = 5  # of the calibration
_POWER = 0.84  # standard deviations: a difference so far above what is significant is found four times in five


@dataclasses.dataclass(frozen=True)
class Fold:
    """What the classifiers of one fold say of its held-out images.

    Attributes:
      labels: int, (M,), of K classes.
      groups: int, (M,): images of one patient have the same number.
      scores: by arm, float64 (S, M, K): the probabilities that classifiers of S seeds give.
    """

    labels: np.ndarray
    groups: np.ndarray
    scores: Mapping[str, np.ndarray]


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area under the ROC curve: how often a positive has a higher score than a negative; ties count half.

    Args:
      scores: (M,).
      positive: bool, (M,).
      weights: (R, M), of each image in each replicate; some on either side.

    Returns:
      (R,), from 0 to 1.
    """
    values = np.unique(scores)
    places = np.searchsorted(values, scores)
    to_value = np.eye(len(values))[places]
    on_positive, on_negative = (weights * positive) @ to_value, (weights * ~positive) @ to_value
    below = np.cumsum(on_negative, 1) - on_negative / 2
    return (on_positive * below).sum(1) / (on_positive.sum(1) * on_negative.sum(1))


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean precision at the score of each positive; arguments and result as those of `auc`."""
    values = np.unique(-scores)
    to_value = np.eye(len(values))[np.searchsorted(values, -scores)]
    on_positive, on_all = (weights * positive) @ to_value, weights @ to_value
    precision = np.cumsum(on_positive, 1) / np.maximum(np.cumsum(on_all, 1), 1e-12)  # none before the first image
    return (on_positive * precision).sum(1) / on_positive.sum(1)


def sensitivity(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of positives found where at most a tenth of negatives is; arguments and result as those of `auc`."""
    values = np.unique(-scores)
    to_value = np.eye(len(values))[np.searchsorted(values, -scores)]
    found, false = (np.cumsum((weights * side) @ to_value, 1) for side in (positive, ~positive))
    allowed = false <= (1 - SPECIFICITY + 1e-9) * false[:, -1:]
    return (found * allowed).max(1) / found[:, -1]


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over classes of the share that is recognised: scores (M, K), labels (M,), weights (R, M) to (R,)."""
    right = scores.argmax(1) == labels
    classes = range(scores.shape[1])
    shares = [(weights * (right & (labels == k))).sum(1) / (weights * (labels == k)).sum(1) for k in classes]
    return np.mean(shares, 0)


def brier(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean squared distance of probabilities to the truth (Brier 1950), from 0 to 2; as `balanced_accuracy`."""
    squares = ((scores - np.eye(scores.shape[1])[labels]) ** 2).sum(1)
    return weights @ squares / weights.sum(1)


def calibration_error(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far probabilities of the positive class are from frequencies: the mean over five bins of as many images."""
    bins = np.argsort(np.argsort(scores, kind="stable"), kind="stable") * BINS // len(scores)
    to_bin = np.eye(BINS)[bins]
    differences = (weights * (scores - positive)) @ to_bin
    return np.abs(differences).sum(1) / weights.sum(1)


@dataclasses.dataclass(frozen=True)
class FigureKind:
    """A figure of one classifier: `compute` takes scores (M, K), labels (M,), the positive class, weights (R, M)."""

    title: str
    higher_is_better: bool
    compute: Callable[[np.ndarray, np.ndarray, int, np.ndarray], np.ndarray]


def _each_against_the_rest(figure: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def compute(scores: np.ndarray, labels: np.ndarray, positive: int, weights: np.ndarray) -> np.ndarray:
        classes = [positive] if scores.shape[1] == 2 else range(scores.shape[1])
        return np.mean([figure(scores[:, k], labels == k, weights) for k in classes], 0)

    return compute


KINDS = {
    "auc": FigureKind("AUC", True, _each_against_the_rest(auc)),
    "average_precision": FigureKind("average precision", True, _each_against_the_rest(average_precision)),
    "sensitivity": FigureKind(
        f"sensitivity at {SPECIFICITY} specificity", True, lambda s, y, k, w: sensitivity(s[:, k], y == k, w)
    ),
    "balanced_accuracy": FigureKind("balanced accuracy", True, lambda s, y, k, w: balanced_accuracy(s, y, w)),
    "brier": FigureKind("Brier score", False, lambda s, y, k, w: brier(s, y, w)),
    "calibration_error": FigureKind(
        "calibration error", False, lambda s, y, k, w: calibration_error(s[:, k], y == k, w)
    ),
}
PRIMARY = "auc"


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """One arm's figures, and how they differ from the reference's.

    Attributes:
      arm: the arm.
      figures: by name, see `KINDS`.
      differences: by name: to the best arm without fakes, paired, 95 %. Intervals of an arm with fakes hold for all
        these arms at once, those of others each by itself.
    """

    arm: Arm
    figures: dict[str, Estimate]
    differences: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a trial says.

    Attributes:
      word: "gain", "harm" or "no difference shown".
      sentence: the word in full, with figures.
      reference: the name of the best arm without fakes.
      mean_difference: of all arms with fakes to the same arm without, in the primary figure.
      smallest_difference: that four trials in five like this one would have shown.
      results: of all arms.
    """

    word: str
    sentence: str
    reference: str
    mean_difference: Estimate
    smallest_difference: float
    results: tuple[ArmResult, ...]


def judge(
    folds: Sequence[Fold], arms: Sequence[Arm], *, positive: int, seed: int = 0, replicates: int = REPLICATES
) -> Verdict:
    """Compares the arms of a trial.

    Patients of each fold and the seeds of the classifiers are drawn with repetition, the same for all arms. The
    reference is the arm without fakes with the highest AUC, which makes a gain harder to show, and not easier.
    Intervals are normal ones around the value, with the standard deviation of the replicates. Those of differences of
    arms with fakes are wider, so that all arms' hold at once in 95 % of trials, for each figure by itself: by the
    largest deviation of any arm in each replicate (Westfall & Young 1993).

    - gain: an arm with fakes beats the reference.
    - harm: none does, and the arms with fakes are on average worse than the same arms without.

    Args:
      folds: of the trial.
      arms: of the trial.
      positive: the class whose sensitivity and precision are meant: the scarcest.
      seed: of the bootstrap.
      replicates: of the bootstrap, 2 or more.
    """
    random = np.random.default_rng(seed)
    num_seeds = len(next(iter(folds[0].scores.values())))
    image_weights = [np.concatenate([np.ones((1, len(f.labels))), _resampled(f, random, replicates)]) for f in folds]
    seed_weights = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), replicates) / num_seeds
    seed_weights = np.concatenate([np.full((1, num_seeds), 1 / num_seeds), seed_weights])

    def values(arm: Arm, kind: FigureKind) -> np.ndarray:
        """(1 + replicates,): the value, and those of the replicates."""
        by_seed = [
            np.mean(
                [
                    kind.compute(f.scores[arm.name][s], f.labels, positive, w)
                    for f, w in zip(folds, image_weights, strict=True)
                ],
                0,
            )
            for s in range(num_seeds)
        ]
        return (seed_weights * np.stack(by_seed, 1)).sum(1)

    found = {arm.name: {name: values(arm, kind) for name, kind in KINDS.items()} for arm in arms}
    primary = {name: of_arm[PRIMARY] for name, of_arm in found.items()}
    reference = max((arm.name for arm in arms if not arm.fakes), key=lambda name: primary[name][0])
    with_fakes = [arm for arm in arms if arm.has_fakes]
    names = [arm.name for arm in with_fakes]
    reach, corrected = {}, {}
    for name in KINDS:
        differences = np.stack([found[arm][name] - found[reference][name] for arm in names])
        deviations = differences[:, 1:].std(1, ddof=1) + 1e-12
        centred = differences[:, 1:] - differences[:, 1:].mean(1, keepdims=True)
        quantile = max(float(np.quantile(np.abs(centred / deviations[:, None]).max(0), 0.95)), 1.96)
        reach[name] = float((quantile + _POWER) * np.median(deviations))
        corrected[name] = dict(zip(names, map(_around, differences[:, 0], quantile * deviations), strict=True))
    mean = np.mean([primary[arm.name] - primary[arm.base] for arm in with_fakes], 0)
    mean_difference = _estimate(mean)
    results = tuple(
        ArmResult(
            arm,
            {name: _estimate(x) for name, x in found[arm.name].items()},
            {
                name: corrected[name].get(arm.name) or _estimate(x - found[reference][name])
                for name, x in found[arm.name].items()
            },
        )
        for arm in arms
    )
    best = max(with_fakes, key=lambda arm: primary[arm.name][0])
    smallest = reach[PRIMARY]
    word, sentence = _verdict(best, corrected[PRIMARY], reference, primary, mean_difference, smallest)
    return Verdict(word, sentence, reference, mean_difference, smallest, results)


def _verdict(
    best: Arm,
    corrected: Mapping[str, Estimate],
    reference: str,
    primary: Mapping[str, np.ndarray],
    mean: Estimate,
    smallest: float,
) -> tuple[str, str]:
    title = KINDS[PRIMARY].title
    difference = signed(corrected[best.name])
    against = (
        f"the best arm with fakes ({best.describe()}) has {title} {primary[best.name][0]:.3f}, the best without "
        f"({reference}) {primary[reference][0]:.3f}: difference {difference}, corrected for {len(corrected)} arms"
    )
    if any(estimate.low > 0 for estimate in corrected.values()):
        return "gain", f"Gain: {against}."
    if mean.high < 0:
        return (
            "harm",
            f"Harm: fakes change {title} by {signed(mean)} on average over {len(corrected)} arms; {against}.",
        )
    worse = ", ".join(name for name, estimate in corrected.items() if estimate.high < 0)
    return (
        "no difference shown",
        f"No difference shown: {against}; a gain of less than {smallest:.3f} could hide"
        + (f"; worse than {reference}: {worse}." if worse else "."),
    )


def signed(estimate: Estimate) -> str:
    """A difference and its interval, for people."""
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def _resampled(fold: Fold, random: np.random.Generator, replicates: int) -> np.ndarray:
    """Weights (replicates, M): how often each image's patient is drawn, as many of each class as there are.

    Patients with images of several classes are drawn among their like, so that no class is ever left out.
    """
    groups, of_image = np.unique(fold.groups, return_inverse=True)
    has = np.zeros((len(groups), fold.labels.max() + 1), bool)
    has[of_image, fold.labels] = True
    kinds, kind = np.unique(has, axis=0, return_inverse=True)
    drawn = np.empty((replicates, len(groups)))
    for number in range(len(kinds)):
        alike = np.flatnonzero(kind == number)
        drawn[:, alike] = random.multinomial(len(alike), np.full(len(alike), 1 / len(alike)), replicates)
    return drawn[:, of_image]


def _estimate(values: np.ndarray) -> Estimate:
    return _around(values[0], 1.96 * float(np.std(values[1:], ddof=1)))


def _around(value: float, reach: float) -> Estimate:
    return Estimate(float(value), float(value - reach), float(value + reach))
