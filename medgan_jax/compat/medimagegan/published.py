"""The five scores that MedImageGAN published of each experiment, and the references needed to read them.

Its protocol compares the i-th fake with the i-th real of a shuffled batch, each stretched to its own range. The two
images are unrelated, so the scores tell how much two images of the data set have in common, and little of the
generator. Beside them stand the same metrics of each fake and its nearest real. Both have a real reference: the scores
of other reals in place of the fakes.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from medgan_jax.evaluation.protocol import PAIRINGS, paired_scores
from medgan_jax.metrics.paired import METRICS

PUBLISHED = ("psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi")  # in the published order
COLUMNS = {  # of `PublishedScores`, and their titles
    "fakes_original": "fakes, original's protocol",
    "reals_original": "reals, original's protocol",
    "fakes_nearest": "fakes, nearest real",
    "reals_nearest": "reals, nearest real",
}
MAX_PAIRS = 64  # under the original's protocol; published were those of one batch, less one
MAX_IMAGES = 500  # of each set, for the nearest pairs
_MIN_REALS = 4


@dataclasses.dataclass(frozen=True)
class PublishedScores:
    """Scores of fakes and of reals in their place."""

    means: dict[str, dict[str, float]]  # over pairs, by `COLUMNS` and metric; a column may be empty, see `skipped`
    num_pairs: int  # under the original's protocol, of fakes; of reals, at most `num_each`
    num_each: int  # fakes, and other reals, that were compared with their nearest real
    num_reference: int  # reals among which the nearest was searched
    seed: int  # of the order of the reals, and of their halves
    skipped: tuple[str, ...]  # what could not be computed, each as "WHAT: reason"


def num_fakes(num_reals: int) -> int:
    """How many fakes `published_scores` can use."""
    return max(MAX_PAIRS, min(num_reals // 2, MAX_IMAGES))


def published_scores(fakes: np.ndarray, reals: np.ndarray, *, seed: int) -> PublishedScores:
    """Scores fakes (N, H, H, C) as MedImageGAN did, and beside a real reference, reals (M, H, H, C), all uint8.

    The reals, which may be a memory map, are put in an order by `seed`. The original's protocol takes them in that
    order. The nearest reals are searched in the first half of them; reals of the other half, as many as fakes, are the
    real reference. `num_fakes` fakes are enough.
    """
    size = fakes.shape[1]
    names = [name for name in PUBLISHED if size >= METRICS[name].min_size]
    skipped = [
        f"{METRICS[name].title}: needs images of {METRICS[name].min_size} px, and these have {size}"
        for name in PUBLISHED
        if name not in names
    ]
    means: dict[str, dict[str, float]] = {column: {} for column in COLUMNS}

    def score(column: str, images: np.ndarray, partners: np.ndarray, pairing: str) -> None:
        scores = paired_scores(images, partners, names, pairing=pairing)
        means[column] = {name: float(values.mean()) for name, values in scores.items()}

    order = np.random.default_rng(seed).permutation(len(reals))
    num_pairs = min(len(fakes), len(reals), MAX_PAIRS)
    if num_pairs and names:  # the partners are not sorted, as classes lie together
        score("fakes_original", fakes[:num_pairs], np.asarray(reals[order[:num_pairs]]), "medimagegan")
    else:
        skipped.append(f"the original's protocol: of {len(fakes)} fakes and {len(reals)} reals there are no pairs")

    first, second = np.array_split(order, 2)
    num_each, num_reference = min(len(fakes), len(second), MAX_IMAGES), min(len(first), MAX_IMAGES)
    if len(reals) >= _MIN_REALS and num_each and names:
        reference, others = (np.asarray(reals[np.sort(i)]) for i in (first[:num_reference], second[:num_each]))
        score("fakes_nearest", fakes[:num_each], reference, "nearest")
        score("reals_nearest", others, reference, "nearest")
        paired, partners = (np.asarray(reals[half[: min(num_pairs, num_each)]]) for half in (second, first))
        score("reals_original", paired, partners, "medimagegan")
    else:
        num_each = num_reference = 0
        skipped.append(
            f"nearest pairs: {len(fakes)} fakes and {len(reals)} reals are too few, 1 and {_MIN_REALS} are needed"
        )
    return PublishedScores(means, num_pairs, num_each, num_reference, seed, tuple(skipped))


def published_report(scores: PublishedScores, *, title: str) -> str:
    """The scores as a small table in plain text, with how to read it; ends in a newline."""
    rows = [("", *COLUMNS.values())]
    for name in PUBLISHED:
        metric = METRICS[name]
        label = metric.title + (f", {metric.unit}" if metric.unit else "")
        better = "higher" if metric.higher_is_better else "lower"
        cells = (format_score(scores.means[column], name) for column in COLUMNS)
        rows.append((f"{label} ({better} is better)", *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    notes = [f"Reals in an order, and in two halves, by seed {scores.seed}. Scores are means over pairs."]
    if scores.means["fakes_original"]:
        notes.append(
            f"Original's protocol: {scores.num_pairs} pairs, {PAIRINGS['medimagegan']}. The two images of a pair are "
            "unrelated: these scores measure little; compare them with those of two reals."
        )
    if scores.means["fakes_nearest"]:
        notes += [
            f"Nearest real: {scores.num_each} fakes, {PAIRINGS['nearest']}, of {scores.num_reference}.",
            f"Reals: {scores.num_each} others in place of the fakes, as a perfect generator would score. "
            "Better fakes may be memorized, or without detail.",
        ]
    notes += [f"Skipped: {reason}." for reason in scores.skipped]
    return "\n".join([title, "", *(line.rstrip() for line in lines), "", *notes]) + "\n"


def format_score(means: Mapping[str, float], name: str) -> str:
    """A score for a table, or a dash where there is none."""
    return f"{means[name]:.2f}" if name in means else "-"
