"""Images from latents: any number, in constant memory, over any number of devices."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from medgan_jax.checkpoint import AnyGenerator, TrainedGenerator
from medgan_jax.data.classes import class_number
from medgan_jax.errors import UserError
from medgan_jax.images import signed_to_uint8
from medgan_jax.metrics.distribution.guard import GUARD, Guard, guard_key
from medgan_jax.models.batch_norm import estimate_statistics
from medgan_jax.progress import progress_bar
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.sharding import sharded

MAX_TRUNCATION = 4.0  # beyond, less than one number in 10,000 changes
MAX_ATTEMPTS = 20  # of an image; where half of all draws are rejected, one image in a million fails
_GUARDED_AT_ONCE = 256  # images that the guard checks together
_STATISTICS_BATCHES, _STATISTICS_BATCH = 32, 16  # of truncated latents, for the batch statistics


@functools.partial(jax.jit, static_argnames=("seed", "latent_dim", "truncation"))
def seeded_latents(
    seed: int,
    indices: np.ndarray,
    attempts: np.ndarray | None = None,
    *,
    latent_dim: int,
    truncation: float | None = None,
) -> jax.Array:
    """The latents of numbered images: row i depends on (seed, indices[i], attempts[i]) and `truncation` alone.

    Truncated latents are from the normal distribution without its tails, by which Brock et al. 2019 (arXiv:1809.11096,
    section 3.1) trade variety for fidelity; with batch normalisation it changes little. They are not drawn anew but
    moved, so an image stays recognisable.

    Args:
      seed: of the random numbers.
      indices: (N,) int32, the numbers of the images.
      attempts: (N,) int32, which draw of each; 0 is the same as None.
      latent_dim: L.
      truncation: where the tails are cut off, above 0 and at most `MAX_TRUNCATION`; None leaves them.

    Returns:
      (N, L) float32.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, rng_key(seed, RngStream.LATENTS)))(indices)
    if attempts is not None:
        keys = jax.numpy.where(attempts > 0, jax.vmap(jax.random.fold_in)(keys, attempts), keys)
    latents = jax.vmap(lambda key: jax.random.normal(key, (latent_dim,)))(keys)
    if truncation is None:
        return latents
    share = math.erf(truncation / math.sqrt(2))  # of the normal distribution that is left
    return math.sqrt(2) * jax.scipy.special.erfinv(share * jax.scipy.special.erf(latents / math.sqrt(2)))


@functools.partial(jax.jit, static_argnames="generator")
def generate(
    generator: AnyGenerator,
    variables: dict[str, Any],
    latents: jax.Array,
    labels: jax.Array | None = None,
) -> jax.Array:
    """The images, uint8 (N, H, W, C), of latents (N, latent_dim) and their classes, (N,) int32.

    Running statistics are used: no image depends on the others of its batch.
    """
    return signed_to_uint8(cast(jax.Array, generator.apply(variables, latents, labels, training=False)))


def classes_in_turn(num_classes: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """From image numbers (N,) to classes (N,) int32: image i is of class i % `num_classes`; None where that is 0."""
    return (lambda indices: indices % num_classes) if num_classes else None


def classes_listed(classes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From image numbers (N,) to classes (N,) int32: image i is of `classes[i]`, those past the end of the last."""
    return lambda indices: classes[np.minimum(indices, len(classes) - 1)]


def classes_of(generator: TrainedGenerator, label: str | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """From image numbers (N,) to classes (N,) int32: all of the class `label`, or without one all in turn.

    None where the generator has learned no classes.

    Raises:
      UserError: it has not learned the class `label`.
    """
    if label is None:
        return classes_in_turn(len(generator.classes))
    number = class_number(label, generator.classes)
    return lambda indices: np.full(len(indices), number, np.int32)


def truncated_variables(generator: TrainedGenerator, truncation: float | None) -> dict[str, Any]:
    """A generator's variables for latents of `truncation`: with batch statistics of such latents, of all its classes.

    Those of all latents would make the images pale. None as truncation leaves the variables as they are.
    """
    if truncation is None or "batch_stats" not in generator.variables:
        return generator.variables
    shape = (_STATISTICS_BATCHES, _STATISTICS_BATCH)
    indices = np.arange(math.prod(shape), dtype=np.int32)
    latents = seeded_latents(0, indices, latent_dim=generator.latent_dim, truncation=truncation)
    labels_of = classes_in_turn(len(generator.classes))
    labels = labels_of and labels_of(indices).reshape(shape)
    estimate = jax.jit(functools.partial(estimate_statistics, generator.module))
    return estimate(generator.variables, np.asarray(latents).reshape(*shape, -1), labels)


def sample_batches(
    generator: AnyGenerator,
    variables: dict[str, Any],
    latents_of: Callable[[np.ndarray], Any],
    num_images: int,
    *,
    batch_size: int,
    mesh: Mesh,
    labels_of: Callable[[np.ndarray], Any] | None = None,
) -> Iterator[np.ndarray]:
    """Generates images 0 to num_images - 1, in order.

    Args:
      generator: the module.
      variables: its parameters and batch statistics, replicated over `mesh`.
      latents_of: from image numbers (batch_size,) int32 to their latents; numbers past the end may be asked for, and
        what they give is dropped.
      num_images: how many images.
      batch_size: how many at once; a multiple of the number of devices.
      mesh: the devices.
      labels_of: likewise to their classes, (batch_size,) int32; None where the generator has none.

    Yields:
      uint8 (N, H, W, C), N = batch_size but for a last smaller batch. The next one is being computed meanwhile.
    """
    running: tuple[jax.Array, int] | None = None
    for start in range(0, num_images, batch_size):
        numbers = np.arange(start, start + batch_size, dtype=np.int32)
        inputs = latents_of(numbers), labels_of and labels_of(numbers)
        images = generate(generator, variables, *jax.device_put(inputs, sharded(mesh)))
        finished, running = running, (images, min(batch_size, num_images - start))
        if finished:
            yield np.asarray(finished[0])[: finished[1]]
    if running:
        yield np.asarray(running[0])[: running[1]]


def numbered_batches(
    generator: TrainedGenerator,
    variables: dict[str, Any],
    indices: np.ndarray,
    attempts: np.ndarray,
    *,
    seed: int,
    truncation: float | None,
    batch_size: int,
    mesh: Mesh,
    labels_of: Callable[[np.ndarray], Any] | None,
) -> Iterator[np.ndarray]:
    """Generates the images of a seed with the numbers `indices`, (N,) int32, in this order.

    Args:
      generator: what to sample from.
      variables: its variables, see `truncated_variables`.
      indices: of the images.
      attempts: which draw of each, (N,) int32.
      seed: of the latents.
      truncation: of the latents.
      batch_size: as of `sample_batches`.
      mesh: the devices.
      labels_of: from image numbers to their classes.

    Yields:
      As `sample_batches`.
    """

    def within(places: np.ndarray) -> np.ndarray:
        return np.minimum(places, len(indices) - 1)

    return sample_batches(
        generator.module,
        variables,
        lambda places: seeded_latents(
            seed,
            indices[within(places)],
            attempts[within(places)],
            latent_dim=generator.latent_dim,
            truncation=truncation,
        ),
        len(indices),
        batch_size=batch_size,
        mesh=mesh,
        labels_of=labels_of and (lambda places: labels_of(indices[within(places)])),
    )


def accepted_attempts(
    generator: TrainedGenerator, variables: dict[str, Any], guard: Guard, num_images: int, *, seed: int, **options: Any
) -> np.ndarray:
    """Which draw of each image is the first that the guard lets pass: int32, (num_images,).

    Where it is 0, the image is that without a guard. `options` are those of `numbered_batches`.

    Raises:
      UserError: it lets none of `MAX_ATTEMPTS` pass.
    """
    attempts = np.zeros(num_images, np.int32)
    with progress_bar(num_images, unit="image", desc="looking for copies") as bar:
        for start in range(0, num_images, _GUARDED_AT_ONCE):
            left = np.arange(start, min(start + _GUARDED_AT_ONCE, num_images), dtype=np.int32)
            while len(left):
                batches = numbered_batches(generator, variables, left, attempts[left], seed=seed, **options)
                copies = np.concatenate([guard.copies(images) for images in batches])
                bar.update(len(left) - copies.sum())
                left = left[copies]
                attempts[left] += 1
                if attempts[left].max(initial=0) == MAX_ATTEMPTS:
                    raise UserError(
                        f"{generator.guard}: all {MAX_ATTEMPTS} draws of image {left[0]} of seed {seed} are closer to "
                        "a training image than unseen real images are: the generator copies what it was trained on. "
                        "Train one on more images or less long, or sample without the guard (--noguard, guard=False)"
                    )
    return attempts


def open_guard(asked: bool | None, generator: TrainedGenerator, latents: np.ndarray | None) -> Guard | None:
    """The guard of a generator, where it was asked for or not; `asked` is None for: where there is one.

    Raises:
      UserError: it was asked for, and there is none, or the latents are the caller's own; or it cannot be read.
    """
    if asked and latents is not None:
        raise UserError("guard: draws other latents, and --latents are used as they are; leave one of them out")
    if asked and generator.guard is None:
        raise UserError(
            f"guard: there is no {GUARD} with this generator; train with config.guard=True, or leave guard out"
        )
    if asked is False or latents is not None or generator.guard is None:
        return None
    guard, digest = Guard.load(generator.guard), generator.about.get("data_digest")
    if digest and guard.key != guard_key(str(digest)):
        raise UserError(
            f"{generator.guard}: is of other training images than this generator; give its own, or sample without it "
            "(--noguard, guard=False)"
        )
    return guard


def check_truncation(truncation: float | None, latents: np.ndarray | None) -> None:
    """Raises UserError when latents cannot be truncated so, or are the caller's own."""
    if truncation is None:
        return
    if not 0 < truncation <= MAX_TRUNCATION:
        raise UserError(
            f"--truncation={truncation:g}: must be above 0 and at most {MAX_TRUNCATION:g}, such as 1; or leave it out"
        )
    if latents is not None:
        raise UserError("--truncation: is of seeded latents, and --latents are used as they are; leave one of them out")


def load_latents(path: Path, latent_dim: int) -> np.ndarray:
    """Reads the caller's latents, (N, latent_dim), from a .npy file. Raises UserError when they are not that."""
    try:
        latents = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"--latents={path}: cannot be read ({error})") from error
    except (
        Exception
    ) as error:  # on damaged bytes NumPy raises nearly anything, and advises to allow files that run code
        raise UserError(f"--latents={path}: not a .npy file of numbers; save an array with numpy.save") from error
    if not isinstance(latents, np.ndarray):
        raise UserError(f"--latents={path}: an archive of arrays; save one array with numpy.save")
    if latents.ndim != 2 or latents.shape[1] != latent_dim or not len(latents):
        raise UserError(f"--latents={path}: shape {latents.shape}, but this generator takes (N, {latent_dim})")
    if latents.dtype.kind not in "fiu" or not np.all(np.abs(latents) <= np.finfo(np.float32).max):
        raise UserError(f"--latents={path}: must hold finite real numbers; it is of type {latents.dtype}")
    return latents.astype(np.float32)
