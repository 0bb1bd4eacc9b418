"""The evaluation protocol: every metric of the fakes beside the same metric of real images.

Three sets of images take part: the fakes; the *reference*, real images that both others are compared with; and the
*reals*, real images apart from the reference. Fakes and reals are compared with the reference in the same way and in
equal numbers, because nearly every metric changes with the number of images. So the figure of the reals is what a
perfect generator would get.

With a training set, the reals are training images and the reference is what the generator has not seen. Without one,
the given reals are divided into two halves.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.evaluation.image_sets import MAX_IMAGES, ImageSet
from medgan_jax.evaluation.report import Figure, Report
from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.checkerboard import checkerboard_index
from medgan_jax.metrics.distribution.diversity import pairwise_similarity, similarity_metric
from medgan_jax.metrics.distribution.features import Features, efficientnet_features
from medgan_jax.metrics.distribution.fid import fid
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.metrics.distribution.memorization import (
    CopySearch,
    Nearest,
    chance_of_memorized,
    copying_z,
    duplicated,
    memorization,
    memorized,
    nearest,
    turned,
)
from medgan_jax.metrics.distribution.prdc import prdc
from medgan_jax.metrics.distribution.swd import sliced_wasserstein
from medgan_jax.metrics.paired import METRICS
from medgan_jax.models.efficientnet_lite import load_efficientnet_lite
from medgan_jax.progress import progress_bar

T = TypeVar("T")

MIN_IMAGES = 10  # of each set, for metrics of sets
PAIRINGS = {
    "nearest": "each image with the real it differs least from, by pixels at 32 px at most",
    "random": "each image with a real drawn by chance",
    "medimagegan": "the i-th image with the i-th real, each stretched to its own minimum and maximum, as MedImageGAN",
}
_LOW_RESOLUTION = 32  # px
_MAX_NAMED = 1000  # memorized fakes
_PSNR_CEILING = 80.0  # dB, as in PIQA: a mean with infinity in it says nothing
_BATCH = 4  # pairs: few enough that what is computed of them stays in a CPU's cache


def verdict(value: Estimate, reals: Estimate, *, better: str, limit: float) -> str:
    """The word for a figure whose value is poor beyond `limit`, unless its interval meets that of the reals."""
    if better == "lower":
        is_worse, is_beyond = value.low > reals.high, value.value > limit
    else:
        is_worse, is_beyond = value.high < reals.low, value.value < limit
    return "poor" if is_worse and is_beyond else "short" if is_worse else "good"


def evaluate(
    fakes: ImageSet,
    reals: ImageSet,
    train: ImageSet | None = None,
    *,
    pairing: str = "nearest",
    features: Features | None = None,
    seed: int = 0,
    replicates: int = 200,
    progress: bool = True,
) -> Report:
    """Computes every metric of a set of fakes; the same call gives the same numbers.

    Args:
      fakes: the images to evaluate, square, of 16 px or more; at least one.
      reals: real images to compare them with, of the same size and channels; at least 4, or 2 with `train`.
      train: what the generator was trained on, if known; `reals` must not be among it.
      pairing: one of `PAIRINGS`, for the paired metrics.
      features: for KID, FID, precision, recall, density and coverage; by default EfficientNet-Lite1's.
      seed: decides halves, pairs, subsets and resampling.
      replicates: of the bootstrap; half as many for the sliced Wasserstein distance, which takes longest.
      progress: whether to show a progress bar on stderr.
    """
    features = features or efficientnet_features()
    load_efficientnet_lite("lite1")  # which the search for copies needs: where it is missing, no time is lost
    sets = _Sets.chosen(fakes, reals, train, seed)
    fewest = min(len(sets.fakes), len(sets.reals), len(sets.reference))
    compared = (sets.fakes, sets.reals, sets.reference, at_low_resolution(sets.reals))
    vectors = [features.of(x) for x in compared if fewest >= MIN_IMAGES]  # first, as a user's features may fail
    options = {"seed": seed, "replicates": replicates}
    size = min(fakes.images.shape[1:3])
    usable = [name for name, metric in METRICS.items() if size >= metric.min_size]
    skipped = [
        f"{metric.title}: needs images of {metric.min_size} px, and these have {size}"
        for name, metric in METRICS.items()
        if name not in usable
    ]
    by_features = f"KID, FID, precision, recall, density and coverage by {features.name}"
    tasks = [  # by name, with the least number of images
        ("paired metrics", 2, _paired(sets, usable, pairing, options)),
        ("sliced Wasserstein distance", MIN_IMAGES, _swd(sets, seed, replicates // 2)),
        (by_features, MIN_IMAGES, _by_features(sets, vectors, features.name, options)),
        ("checkerboard index", MIN_IMAGES, _checkerboard(sets, options)),
        ("diversity", MIN_IMAGES, _diversity(sets, options)),
    ]
    needs = [(name, least) for name, least, _ in tasks] + ([("memorization", MIN_IMAGES)] if train else [])
    skipped += [
        f"{name}: needs {least} images of each set, and one has {fewest}" for name, least in needs if fewest < least
    ]
    if not train:
        skipped.append("memorization: needs the training images (train)")

    figures: list[Figure] = []
    named: tuple[tuple[int, int, float], ...] = ()
    possible = [task for _, least, task in tasks if fewest >= least]
    searched, through = train or reals, fakes.trained_through
    with progress_bar(len(possible) + 1, desc="evaluating", unit="metric", disable=not progress) as bar:
        for task in possible:
            figures.extend(task)
            bar.update()
        search = CopySearch(searched.images)
        found = search.nearest(fakes.images)  # all of them: a single copy matters, and needs no equal numbers
        if train and fewest >= MIN_IMAGES:
            of_heldout = search.nearest(sets.reference).distance
            by_unseen = _named_by_unseen(fakes.images, train.images, sets.reference, of_heldout, options)
            figures.extend(_memorization(found.distance, of_heldout, by_unseen, options))
            named = _named(found, of_heldout)
        elif train and (copies := duplicated(found.distance).sum()):
            skipped.append(f"memorization: WARNING: all the same, {copies} of the fakes are training images")
        bar.update()

    return Report(
        protocol={
            "fakes": f"{len(sets.fakes)} of {fakes.title}",
            "reference": f"{len(sets.reference)} of {reals.title}" + ("" if train else ", one half"),
            "reals": f"{len(sets.reals)} of {train.title if train else 'the other half'}",
            "image_size": size,
            "channels": fakes.images.shape[3],
            "pairing": f"{pairing}: {PAIRINGS[pairing]}",
            "features": f"{features.name}: {features.description}",
            **({"trained_through": f"{through}, which must not judge the fakes"} if through else {}),
            "memorization": "EfficientNet-Lite1's activations at stride 16, then pixels at 32 px",
            "intervals": "95 %, by bootstrap over images; memorization of the fakes: Wilson's",
            "seed": seed,
        },
        figures=tuple(figures),
        skipped=tuple(skipped),
        grids={"Fakes": sets.fakes[:64], "Reals": sets.reference[:64]},
        closest=_closest(fakes.images, searched.images, found),
        closest_of=searched.title,
        memorized=named,
    )


@dataclasses.dataclass(frozen=True)
class _Sets:
    """uint8 (N, H, W, C) each; as many reals as fakes. `in_order` are fakes, reals and reference as they came."""

    fakes: np.ndarray
    reals: np.ndarray
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


def _paired(sets: _Sets, names: list[str], pairing: str, options: dict[str, int]) -> Iterator[Figure]:
    fakes, reals, reference = sets.in_order if pairing == "medimagegan" else (sets.fakes, sets.reals, sets.reference)
    score = functools.partial(paired_scores, reals=reference, names=names, pairing=pairing, seed=options["seed"])
    of_fakes, of_reals = _both(score, fakes, reals)
    for name in names:
        metric = METRICS[name]
        title = metric.title + (f", {metric.unit}" if metric.unit else "")
        better = "higher" if metric.higher_is_better else "lower"
        means = _mean(of_fakes[name], options), _mean(of_reals[name], options)
        yield Figure(name, title, f"Paired metrics, {pairing} pairs", better, *means)


def paired_scores(
    images: np.ndarray, reals: np.ndarray, names: list[str], *, pairing: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """Paired metrics of each image and its partner, a batch of pairs at a time.

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
        partners, _ = nearest(images, reals)
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
    joined = {name: np.concatenate(parts) for name, parts in scores.items()}
    return joined | {"psnr": np.minimum(joined["psnr"], _PSNR_CEILING)} if "psnr" in joined else joined


@functools.partial(jax.jit, static_argnames=("names", "stretched"))
def _scores(x: jax.Array, y: jax.Array, names: tuple[str, ...], stretched: bool) -> dict[str, jax.Array]:
    x, y = uint8_to_unit(x), uint8_to_unit(y)
    if stretched:
        x, y = _stretch(x), _stretch(y)
    return {name: METRICS[name].function(x, y) for name in names}


def _stretch(images: jax.Array) -> jax.Array:
    low, high = (extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (jnp.min, jnp.max))
    return (images - low) / jnp.where(high > low, high - low, 1)


def _swd(sets: _Sets, seed: int, replicates: int) -> Iterator[Figure]:
    distances = functools.partial(sliced_wasserstein, reals=sets.reference, seed=seed, replicates=replicates)
    of_fakes, of_reals = _both(distances, sets.fakes, sets.reals)
    for size, value in of_fakes.items():
        title = f"Sliced Wasserstein distance x1000, {size} px"
        yield Figure(f"swd_{size}", title, "Distances", "lower", value, of_reals[size])


def _by_features(sets: _Sets, vectors: list[np.ndarray], name: str, options: dict[str, int]) -> Iterator[Figure]:
    fakes, reals, reference, coarse = vectors
    by = f"by {name}"
    kids = _both(lambda x: kid(x, reference, **options), fakes, reals)
    of_coarse = kid(coarse, reference, **options | {"replicates": 0}).value
    note = f"that of the reals at {_low_resolution(sets.reals)} px is {of_coarse:.3g}"
    word = verdict(*kids, better="lower", limit=max(of_coarse, 2 * kids[1].high))
    yield Figure("kid", f"KID, {by}", "Distances", "lower", *kids, note, word)
    (value, bias), (of_reals, bias_of_reals) = _both(lambda x: fid(x, reference, **options), fakes, reals)
    note = f"{bias:.3g} of it is bias of small sets, and {bias_of_reals:.3g} of that of the reals (extrapolated)"
    yield Figure("fid", f"FID, {by}", "Distances", "lower", value, of_reals, note)
    shares, shares_of_reals = _both(lambda x: prdc(x, reference, **options), fakes, reals)
    for name, share in shares.items():
        of_reals = shares_of_reals[name]
        word = verdict(share, of_reals, better="higher", limit=of_reals.value / 2) if name == "recall" else ""
        title = f"{name.capitalize()}, {by}"
        yield Figure(name, title, "Fidelity and coverage", "higher", share, of_reals, verdict=word)


def at_low_resolution(images: np.ndarray) -> np.ndarray:
    """Images (N, H, H, C) reduced to 32 px, or to half their size if that is less, and enlarged again; uint8.

    The means of blocks, each repeated; what remains at the edge is cut.
    """
    low = _low_resolution(images)
    block = images.shape[1] // low
    parts = images[:, : low * block, : low * block].reshape(len(images), low, block, low, block, -1)
    return np.repeat(np.repeat(parts.mean((2, 4)).round().astype(np.uint8), block, axis=1), block, axis=2)


def _low_resolution(images: np.ndarray) -> int:
    return min(_LOW_RESOLUTION, images.shape[1] // 2)


def _checkerboard(sets: _Sets, options: dict[str, int]) -> Iterator[Figure]:
    of_fakes, of_reals = _both(lambda x: checkerboard_index(x, **options), sets.fakes, sets.reals)
    for period, value in of_fakes.items():
        title = f"Checkerboard index, {period} px"
        yield Figure(f"checkerboard_{period}", title, "Artefacts", "lower", value, of_reals[period], "1: no grid")


def _diversity(sets: _Sets, options: dict[str, int]) -> Iterator[Figure]:
    title = f"{METRICS[similarity_metric(sets.fakes.shape[1])].title} of two fakes, against two reals"
    similarities = _both(lambda x: pairwise_similarity(x, **options), sets.fakes, sets.reals)
    yield Figure("similarity", title, "Diversity", "reals", *similarities)


def _named_by_unseen(
    fakes: np.ndarray, train: np.ndarray, unseen: np.ndarray, of_unseen: np.ndarray, options: dict[str, int]
) -> Estimate:
    """The share of the fakes that would count as memorized if the training images were as many unseen ones.

    By those that look more like one of the unseen than like any training image. 0 to 1 where nothing is unseen.
    """
    unseen = unseen[~duplicated(of_unseen)]
    if len(unseen) < 2:
        return Estimate(0.0, 0.0, 1.0)
    seen = train[np.sort(np.random.default_rng(options["seed"]).permutation(len(train))[:MAX_IMAGES])]
    found = CopySearch(np.concatenate([seen, unseen])).nearest(fakes)
    named = found.index[memorized(found.distance, of_unseen)]
    near = np.bincount(named, minlength=len(seen) + len(unseen))[len(seen) :]  # fakes that look most like each unseen
    return bootstrap(
        lambda weights: float(weights @ near) * len(train) / len(fakes), [len(unseen)], bounds=(0, 1), **options
    )


def _memorization(
    of_fakes: np.ndarray, of_reals: np.ndarray, by_unseen: Estimate, options: dict[str, int]
) -> Iterator[Figure]:
    """From the distances to the nearest training images, of all fakes, and of reals that are none of them."""
    chance = f"1 in {len(of_reals) + 1} on average"
    notes = [
        f"closer to a training image than any held-out real; a perfect generator has {chance}; look at the pairs",
        "beside: if the training images were as many unseen ones, by what looks more like one that was held out",
    ]
    if known := int(duplicated(of_reals).sum()):
        notes.append(f"WARNING: {known} of the reals are training images, and left out")
    title = f"Share of {len(of_fakes)} that are memorized"
    share = memorization(of_fakes, of_reals)
    is_worse = duplicated(of_fakes).any() or chance_of_memorized(of_fakes, of_reals) <= 0.025
    is_beyond = share.value > max(1 / (len(of_reals) + 1), by_unseen.value) + 0.05
    word = "poor" if is_worse and is_beyond else "short" if is_worse else "good"
    yield Figure("memorization", title, "Memorization", "lower", share, by_unseen, "; ".join(notes), word)
    unseen = of_reals[~duplicated(of_reals)]
    if len(unseen) >= MIN_IMAGES:
        first, second = _halves(unseen, options["seed"])
        scores = copying_z(of_fakes, unseen, **options), copying_z(first, second, **options)
        note = "below -3 the fakes as a whole copy, or have few modes; bad ones hide copies"
        yield Figure("copying_z", "Data-copying, z-score (C_T)", "Memorization", "reals", *scores, note)


def _halves(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array_split(np.random.default_rng(seed).permutation(len(values)), 2)
    return values[first], values[second]


def _both(metric: Callable[[np.ndarray], T], fakes: np.ndarray, reals: np.ndarray) -> tuple[T, T]:
    return metric(fakes), metric(reals)


def _mean(scores: np.ndarray, options: dict[str, int]) -> Estimate:
    return bootstrap(
        lambda weights: float(weights @ scores), [len(scores)], seed=options["seed"], replicates=options["replicates"]
    )


def _closest(fakes: np.ndarray, references: np.ndarray, found: Nearest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = np.argsort(found.distance, kind="stable")[:10]
    partners = [turned(np.asarray(references[found.index[i]]), found.symmetry[i]) for i in first]
    return fakes[first], np.stack(partners), found.distance[first]


def _named(found: Nearest, of_heldout: np.ndarray) -> tuple[tuple[int, int, float], ...]:
    order = np.argsort(found.distance, kind="stable")[: memorized(found.distance, of_heldout).sum()][:_MAX_NAMED]
    return tuple((int(i), int(found.index[i]), float(found.distance[i])) for i in order)
