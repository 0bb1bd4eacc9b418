"""The protocol: every measure of the fakes beside its floor, which is the same measure of reals.

Three sets of images take part. The *reference* are reals. The *others* are reals too, apart from the reference. The
fakes and the others are measured against the reference in the same way and in equal numbers, because nearly every
measure changes with the number of images: the figure of the others is the floor, what a perfect generator would get.

With a training set the others come from it, and the reference is what the generator has not seen. Without one the
reals are divided in two halves.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.evaluation.image_sets import MAX_IMAGES, ImageSet
from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.checkerboard import checkerboard_index
from medgan_jax.metrics.distribution.diversity import pairwise_similarity, similarity_metric
from medgan_jax.metrics.distribution.features import PYRAMID, Features
from medgan_jax.metrics.distribution.fid import fid
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.metrics.distribution.memorization import copied_share, duplicated, nearest, turned
from medgan_jax.metrics.distribution.prdc import manifold
from medgan_jax.metrics.distribution.swd import sliced_wasserstein
from medgan_jax.metrics.paired import METRICS
from medgan_jax.progress import progress_bar

MIN_IMAGES = 10  # of each set, for measures between sets
PAIRINGS = {
    "nearest": "each image with the real it differs least from, by pixels at 32 px at most",
    "random": "each image with a real drawn by chance",
    "medimagegan": "the i-th image with the i-th real, each stretched to its own minimum and maximum, as MedImageGAN",
}
_PSNR_CEILING = 80.0  # dB, as in PIQA: a mean with infinity in it says nothing
_BATCH = 4  # pairs: few enough that what is computed of them stays in a CPU's cache


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measure of the fakes, and of reals.

    Attributes:
      name: as in evaluation.json.
      title: for people.
      group: what kind of measure it is.
      better: "higher", "lower", or "floor" where leaving the floor in either direction is a fault.
      value: of the fakes.
      floor: of reals; None where there is none.
      note: what must be known to read it.
    """

    name: str
    title: str
    group: str
    better: str
    value: Estimate
    floor: Estimate | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is known of a set of fakes.

    Attributes:
      protocol: what was compared with what, and how.
      figures: in the order to show them.
      skipped: measures that could not be taken, each as "NAME: reason".
      grids: pictures, each by title: uint8 (N, H, W, C).
      closest: the ten fakes nearest to the training set (or else to the reals): fakes, their neighbours as turned to
        match, and their distances.
    """

    protocol: dict[str, Any]
    figures: tuple[Figure, ...]
    skipped: tuple[str, ...]
    grids: dict[str, np.ndarray]
    closest: tuple[np.ndarray, np.ndarray, np.ndarray]
    closest_of: str


def evaluate(
    fakes: ImageSet,
    reals: ImageSet,
    train: ImageSet | None = None,
    *,
    pairing: str = "nearest",
    features: Features = PYRAMID,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Measures a set of fakes; the same call gives the same numbers.

    Args:
      fakes: the images to judge, square, of 16 px or more; at least one.
      reals: images to judge them by, of the same size and channels; at least 4, or 2 with `train`.
      train: what the generator was trained on, if that is to be compared too; `reals` must not be among it.
      pairing: one of `PAIRINGS`, for the paired metrics.
      features: what the distribution measures see.
      seed: decides halves, pairs, subsets and resampling.
      progress: whether to show a progress bar on stderr.
    """
    sets = _Sets.chosen(fakes, reals, train, seed)
    size = min(fakes.images.shape[1:3])
    skipped: list[str] = []
    tasks: list[tuple[str, Callable[[], Iterator[Figure]]]] = []

    def add(name: str, task: Callable[..., Iterator[Figure]], *arguments: Any, min_images: int = MIN_IMAGES) -> None:
        fewest = min(len(sets.fakes), len(sets.others), len(sets.reference))
        if fewest < min_images:
            skipped.append(f"{name}: needs {min_images} images of each set, and one has {fewest}")
        else:
            tasks.append((name, functools.partial(task, sets, *arguments)))

    usable = [name for name, metric in METRICS.items() if size >= metric.min_size]
    skipped += [
        f"{metric.title}: needs images of {metric.min_size} px, and these have {size}"
        for name, metric in METRICS.items()
        if name not in usable
    ]
    add("paired metrics", _paired, usable, pairing, seed, min_images=2)
    add("sliced Wasserstein distance", _swd, seed)
    add(f"KID, FID, precision, recall, density and coverage by {features.name}", _by_features, features, seed)
    add("checkerboard index", _checkerboard, seed)
    add("diversity", _diversity, seed)
    if train:
        add("copies", _copies, fakes, train, seed)
    else:
        skipped.append("copies: needs the training images")

    figures: list[Figure] = []
    with progress_bar(len(tasks), desc="evaluating", unit="measure", disable=not progress) as bar:
        for name, task in tasks:
            bar.set_postfix_str(name)
            figures.extend(task())
            bar.update()

    closest_of = train or reals
    return Evaluation(
        protocol={
            "fakes": f"{len(sets.fakes)} of {fakes.title}",
            "reference": f"{len(sets.reference)} of {reals.title}" + ("" if train else ", one half"),
            "floor": f"{len(sets.others)} of {train.title}" if train else f"{len(sets.others)} of the other half",
            "image_size": size,
            "channels": fakes.images.shape[3],
            "pairing": f"{pairing}: {PAIRINGS[pairing]}",
            "features": f"{features.name}: {features.description}",
            "intervals": "95 %, by bootstrap over images; copies: Wilson's",
            "seed": seed,
        },
        figures=tuple(figures),
        skipped=tuple(skipped),
        grids={"Fakes": sets.fakes[:64], "Reals": sets.reference[:64]},
        closest=_closest(fakes.images, closest_of),
        closest_of=closest_of.title,
    )


@dataclasses.dataclass(frozen=True)
class _Sets:
    """uint8 (N, H, W, C) each; as many others as fakes. `in_order` are fakes, others and reals as they came."""

    fakes: np.ndarray
    others: np.ndarray
    reference: np.ndarray
    in_order: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def chosen(cls, fakes: ImageSet, reals: ImageSet, train: ImageSet | None, seed: int) -> "_Sets":
        random = np.random.default_rng(seed)

        def some(images: np.ndarray, number: int) -> np.ndarray:
            return np.asarray(images[np.sort(random.permutation(len(images))[:number])])

        if train:
            others, reference = train.images, some(reals.images, MAX_IMAGES)
        else:
            order = random.permutation(len(reals.images))
            others, reference = (reals.images[np.sort(half)] for half in np.array_split(order, 2))
            reference = some(reference, MAX_IMAGES)
        number = min(len(fakes.images), len(others), MAX_IMAGES)
        in_order = fakes.images, train.images if train else reals.images[len(reals.images) // 2 :], reals.images
        return cls(some(fakes.images, number), some(others, number), reference, in_order)


def _paired(sets: _Sets, names: list[str], pairing: str, seed: int) -> Iterator[Figure]:
    fakes, others, reals = sets.fakes, sets.others, sets.reference
    if pairing == "medimagegan":
        fakes, others, reals = sets.in_order
    fakes, others = (paired_scores(x, reals, names, pairing=pairing, seed=seed) for x in (fakes, others))
    for name in names:
        metric = METRICS[name]
        yield Figure(
            name=name,
            title=metric.title + (f", {metric.unit}" if metric.unit else ""),
            group=f"Paired metrics, {pairing} pairs",
            better="higher" if metric.higher_is_better else "lower",
            value=_mean(fakes[name], seed),
            floor=_mean(others[name], seed),
        )


def paired_scores(
    images: np.ndarray, reals: np.ndarray, names: list[str], *, pairing: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """Scores of each pair, a batch of pairs at a time.

    Args:
      images: uint8, (N, H, W, C).
      reals: uint8, (M, H, W, C), of which each image gets a partner.
      names: of `METRICS`.
      pairing: one of `PAIRINGS`.
      seed: of random pairs.

    Returns:
      float32 (N,) by name; PSNR is 80 dB at most. With "medimagegan", (min(N, M),).
    """
    if pairing == "nearest":
        partners = nearest(images, reals, symmetries=False).index
    elif pairing == "random":
        partners = np.resize(np.random.default_rng(seed).permutation(len(reals)), len(images))
    else:
        partners = np.arange(min(len(images), len(reals)))
    scores: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, len(partners), _BATCH):
        # A last short batch is filled up: one shape, one compilation.
        batch = np.minimum(np.arange(start, start + _BATCH), len(partners) - 1)
        found = _scores(images[batch], reals[partners[batch]], tuple(names), pairing == "medimagegan")
        for name, values in found.items():
            scores[name].append(np.asarray(values)[: len(partners) - start])
    return {name: np.minimum(np.concatenate(parts), _PSNR_CEILING) for name, parts in scores.items()}


@functools.partial(jax.jit, static_argnames=("names", "stretched"))
def _scores(x: jax.Array, y: jax.Array, names: tuple[str, ...], stretched: bool) -> dict[str, jax.Array]:
    x, y = uint8_to_unit(x), uint8_to_unit(y)
    if stretched:
        x, y = _stretch(x), _stretch(y)
    return {name: METRICS[name].function(x, y) for name in names}


def _stretch(images: jax.Array) -> jax.Array:
    low, high = (extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (jnp.min, jnp.max))
    return (images - low) / jnp.where(high > low, high - low, 1)


def _swd(sets: _Sets, seed: int) -> Iterator[Figure]:
    fakes, others = (sliced_wasserstein(x, sets.reference, seed=seed) for x in (sets.fakes, sets.others))
    for size, value in fakes.items():
        yield Figure(
            f"swd_{size}", f"Sliced Wasserstein distance x1000, {size} px", "Distances", "lower", value, others[size]
        )


def _by_features(sets: _Sets, features: Features, seed: int) -> Iterator[Figure]:
    fakes, others, reference = (features.of(x) for x in (sets.fakes, sets.others, sets.reference))
    by = f"by {features.name}"
    yield Figure(
        "kid", f"KID, {by}", "Distances", "lower", kid(fakes, reference, seed=seed), kid(others, reference, seed=seed)
    )
    (value, bias), (floor, floor_bias) = fid(fakes, reference, seed=seed), fid(others, reference, seed=seed)
    note = f"of it {bias:.3g} for want of images, {floor_bias:.3g} of the floor (extrapolated to endless sets)"
    yield Figure("fid", f"FID, {by}", "Distances", "lower", value, floor, note)
    values, floors = manifold(fakes, reference, seed=seed), manifold(others, reference, seed=seed)
    for name, value in values.items():
        yield Figure(name, f"{name.capitalize()}, {by}", "Fidelity and coverage", "higher", value, floors[name])


def _checkerboard(sets: _Sets, seed: int) -> Iterator[Figure]:
    fakes, others = (checkerboard_index(x, seed=seed) for x in (sets.fakes, sets.others))
    for period, value in fakes.items():
        title = f"Checkerboard index, {period} px"
        yield Figure(f"checkerboard_{period}", title, "Artefacts", "lower", value, others[period], "1: no grid")


def _diversity(sets: _Sets, seed: int) -> Iterator[Figure]:
    fakes, others = (pairwise_similarity(x, seed=seed) for x in (sets.fakes, sets.others))
    title = f"{METRICS[similarity_metric(sets.fakes.shape[1])].title} of two fakes, against two reals"
    yield Figure("similarity", title, "Diversity", "floor", fakes, others)


def _copies(sets: _Sets, fakes: ImageSet, train: ImageSet, seed: int) -> Iterator[Figure]:
    """Of all fakes: a single copy matters, and needs no equal numbers."""
    found, reals = nearest(fakes.images, train.images), nearest(sets.reference, train.images)
    order = np.random.default_rng(seed).permutation(len(sets.reference))
    first, second = (reals.part(half) for half in np.array_split(order, 2))
    notes = ["blurred images are near to everything: look at the pairs"]
    if known := int(duplicated(reals).sum()):
        notes.append(f"WARNING: {known} of the reals are training images, and left out")
    yield Figure(
        "copies",
        f"Share of {len(fakes.images)} closer to a training image than any held-out real",
        "Copies",
        "lower",
        copied_share(found, reals),
        copied_share(first, second),
        "; ".join(notes),
    )
    title = "Distance to the nearest training image"
    yield Figure("nearest_train", title, "Copies", "floor", _mean(found.distance, seed), _mean(reals.distance, seed))


def _mean(scores: np.ndarray, seed: int) -> Estimate:
    return bootstrap(lambda weights: float(weights @ scores), [len(scores)], seed=seed)


def _closest(fakes: np.ndarray, references: ImageSet, number: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = nearest(fakes, references.images)
    first = np.argsort(found.distance, kind="stable")[:number]
    partners = [turned(np.asarray(references.images[found.index[i]]), found.symmetry[i]) for i in first]
    return fakes[first], np.stack(partners), found.distance[first]
