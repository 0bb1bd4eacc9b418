"""The five figures that MedImageGAN published of each experiment, and what must stand beside them to read them.

Its protocol compares the i-th fake with the i-th real of a shuffled batch, each stretched to its own range. The two
have nothing to do with one another, so its figures tell how much two images of the data set have in common, and little
of the generator. Beside them stand the same metrics of each fake and the real that it is nearest to, and beside both
their floor: what other reals get in the place of the fakes.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from medgan_jax.evaluation.protocol import PAIRINGS, paired_scores
from medgan_jax.metrics.paired import METRICS

PUBLISHED = ("psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi")  # in the published order
COLUMNS = {  # of `PublishedScores`, and their titles
    "as_published": "fakes, original's protocol",
    "as_published_floor": "reals, original's protocol",
    "nearest": "fakes, nearest real",
    "nearest_floor": "reals, nearest real",
}
MAX_AS_PUBLISHED = 64  # pairs; published were those of one batch, less one
MAX_IMAGES = 500  # of each set, for the nearest pairs
_MIN_REALS = 4


@dataclasses.dataclass(frozen=True)
class PublishedScores:
    """Means over pairs by name of metric, in the published order; a column that could not be taken is empty.

    Attributes:
      as_published: of fakes, under the original's protocol.
      as_published_floor: of other reals in the place of the fakes, and the reference.
      nearest: of fakes, each with the real of the reference that it is nearest to.
      nearest_floor: of the other reals, paired with the same reference in the same way.
      num_as_published: pairs in the first column; in the second, as far as there are `num_each` reals.
      num_each: fakes in the third column, and other reals in the fourth.
      num_reference: reals that both were compared with.
      seed: of the order of the reals, and of their halves.
      skipped: what could not be taken, each as "WHAT: reason".
    """

    as_published: dict[str, float]
    as_published_floor: dict[str, float]
    nearest: dict[str, float]
    nearest_floor: dict[str, float]
    num_as_published: int
    num_each: int
    num_reference: int
    seed: int
    skipped: tuple[str, ...]


def num_fakes(num_reals: int) -> int:
    """How many fakes `published_scores` can use."""
    return max(MAX_AS_PUBLISHED, min(num_reals // 2, MAX_IMAGES))


def published_scores(fakes: np.ndarray, reals: np.ndarray, *, seed: int) -> PublishedScores:
    """Scores fakes as MedImageGAN did, and so that the scores can be read.

    The reals are put in an order by `seed`. The original's protocol takes them in that order. For the nearest pairs the
    first half of them is the reference, and the floor comes from the other half: as many others as fakes.

    Args:
      fakes: uint8, (N, H, H, C); `num_fakes` of them are enough.
      reals: uint8, (M, H, H, C); possibly a memory map.
      seed: decides the order of the reals.
    """
    size = fakes.shape[1]
    names = [name for name in PUBLISHED if size >= METRICS[name].min_size]
    skipped = [
        f"{METRICS[name].title}: needs images of {METRICS[name].min_size} px, and these have {size}"
        for name in PUBLISHED
        if name not in names
    ]
    order = np.random.default_rng(seed).permutation(len(reals))

    def means(images: np.ndarray, partners: np.ndarray, pairing: str) -> dict[str, float]:
        scores = paired_scores(images, partners, names, pairing=pairing)
        return {name: float(values.mean()) for name, values in scores.items()}

    def some(chosen: np.ndarray) -> np.ndarray:
        return np.asarray(reals[np.sort(chosen)])

    num_as_published = min(len(fakes), len(reals), MAX_AS_PUBLISHED)
    as_published, as_published_floor, nearest, nearest_floor = {}, {}, {}, {}
    if num_as_published and names:
        partners = np.asarray(reals[order[:num_as_published]])  # unsorted: classes lie together
        as_published = means(fakes[:num_as_published], partners, "medimagegan")
    else:
        skipped.append(f"the original's protocol: of {len(fakes)} fakes and {len(reals)} reals there are no pairs")

    first, second = np.array_split(order, 2)
    num_each, num_reference = min(len(fakes), len(second), MAX_IMAGES), min(len(first), MAX_IMAGES)
    if len(reals) >= _MIN_REALS and num_each and names:
        reference = some(first[:num_reference])
        nearest = means(fakes[:num_each], reference, "nearest")
        nearest_floor = means(some(second[:num_each]), reference, "nearest")
        paired = [np.asarray(reals[half[: min(num_as_published, num_each)]]) for half in (second, first)]
        as_published_floor = means(*paired, "medimagegan")
    else:
        num_each = num_reference = 0
        skipped.append(
            f"nearest pairs: {len(fakes)} fakes and {len(reals)} reals are too few, 1 and {_MIN_REALS} are needed"
        )
    return PublishedScores(
        as_published=as_published,
        as_published_floor=as_published_floor,
        nearest=nearest,
        nearest_floor=nearest_floor,
        num_as_published=num_as_published,
        num_each=num_each,
        num_reference=num_reference,
        seed=seed,
        skipped=tuple(skipped),
    )


def published_report(scores: PublishedScores, *, title: str) -> str:
    """The scores as a small table in plain text, with what must be known to read it; ends in a newline."""
    rows = [("", *COLUMNS.values())]
    for name in PUBLISHED:
        metric = METRICS[name]
        label = metric.title + (f", {metric.unit}" if metric.unit else "")
        cells = (format_score(getattr(scores, column), name) for column in COLUMNS)
        rows.append((label + (" (higher is better)" if metric.higher_is_better else " (lower is better)"), *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    notes = [f"Reals in an order, and in two halves, by seed {scores.seed}. Figures are means over pairs."]
    if scores.as_published:
        notes.append(
            f"Original's protocol: {scores.num_as_published} pairs, {PAIRINGS['medimagegan']}. The two images "
            "of a pair are unrelated: these figures measure little; compare them with those of two reals."
        )
    if scores.nearest:
        notes += [
            f"Nearest real: {scores.num_each} fakes, {PAIRINGS['nearest']}, of {scores.num_reference}.",
            f"Reals: {scores.num_each} others in the place of the fakes, as a perfect generator would score. "
            "Fakes beyond it may be copies, or without detail.",
        ]
    notes += [f"Skipped: {reason}." for reason in scores.skipped]
    return "\n".join([title, "", *(line.rstrip() for line in lines), "", *notes]) + "\n"


def format_score(column: Mapping[str, float], name: str) -> str:
    """A score for a table, or a dash where there is none."""
    return f"{column[name]:.2f}" if name in column else "-"
