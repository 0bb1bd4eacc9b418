"""A walk through latent space as a movie: images turn into each other, and the last into the first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from medgan_jax.checkpoint import TrainedGenerator
from medgan_jax.errors import UserError
from medgan_jax.files import local_path
from medgan_jax.movie import check_movie_path, write_movie
from medgan_jax.progress import progress_bar
from medgan_jax.sampling import classes_of, sample_batches, seeded_latents, truncated_variables

_FRAMES_PER_LEG = 30  # from one image to the next
_FRAMES_PER_SECOND = 15.0
_DEFAULT_IMAGES = 8
_SIDE = 256  # px: smaller images are enlarged by a whole number, to about this
_PARALLEL = 1e-6  # sine of the angle below which two directions lie on one line


def movie_path(path: str | None, *, grid: bool, overwrite: bool) -> Path | None:
    """The file that --interpolate names, checked before a generator is loaded; None without one.

    Raises:
      UserError: no movie can be written there; or flags that belong to a folder of images are given too.
    """
    if path is None:
        return None
    if not path:
        raise UserError("give --interpolate=FILE, a .webp, .gif or .mp4 file")
    for name, given in (("grid", grid), ("overwrite", overwrite)):
        if given:
            raise UserError(f"--{name}: --interpolate writes its movie only; leave out one of them")
    movie = local_path("--interpolate", path)
    check_movie_path(movie)
    return movie


def write_walk(generator: TrainedGenerator, path: Path, **options: Any) -> None:
    """Writes the movie of a walk, two seconds from image to image; `options` are those of `walk_frames`.

    One image at a time is shown, as large as a viewer needs to follow what changes: a generator that has memorized
    training images jumps from one to another, where others change little by little.

    Raises:
      UserError: as `walk_frames` does, or the movie cannot be written.
    """
    factor = -(-_SIDE // generator.module.image_size)
    frames = (image.repeat(factor, axis=0).repeat(factor, axis=1) for image in walk_frames(generator, **options))
    label = _label(generator, options.get("label"))
    seed = options["seed"] if options.get("latents") is None else None
    origin = generator.provenance(seed=seed, index=0, label=label or "", truncation=options.get("truncation"))
    write_movie(path, frames, frames_per_second=_FRAMES_PER_SECOND, origin=origin)


def _label(generator: TrainedGenerator, label: str | None) -> str | None:
    """The class of a walk; the first where none is given, None where there are none."""
    return next(iter(generator.classes), None) if label is None else label


def walk_frames(
    generator: TrainedGenerator,
    *,
    num_images: int | None,
    seed: int,
    batch_size: int,
    mesh: Mesh,
    latents: np.ndarray | None = None,
    label: str | None = None,
    truncation: float | None = None,
    frames_per_leg: int = _FRAMES_PER_LEG,
) -> Iterator[np.ndarray]:
    """The frames of one walk from image to image, that ends where it began.

    Args:
      generator: what to sample from.
      num_images: how many images to pass through, 2 or more; None for one for each latent, or 8.
      seed: the images are those that `sample_to_folder` numbers 0, 1, ... of this seed and `label`
        without a guard.
      batch_size: frames generated at once.
      mesh: the devices.
      latents: (at least num_images, latent_dim), to pass through in order instead of a seed.
      label: the class of all images; None for the generator's first, if it has learned any: a walk keeps to one, as
        there is nothing between two classes.
      truncation: of the latents, see `seeded_latents`; goes with a seed.
      frames_per_leg: from one image to the next.

    Yields:
      uint8, (H, H, C): num_images * frames_per_leg of them.

    Raises:
      UserError: the generator has not learned the class; or fewer than two images, or fewer latents than images, are
        asked for.
    """
    if num_images is None:
        num_images = _DEFAULT_IMAGES if latents is None else len(latents)
    if num_images < 2:
        raise UserError(f"num_images={num_images}: a walk passes through two images or more")
    if latents is None:
        numbers = np.arange(num_images, dtype=np.int32)
        latents = seeded_latents(seed, numbers, latent_dim=generator.latent_dim, truncation=truncation)
    elif num_images > len(latents):
        raise UserError(f"--num_images={num_images}, but --latents has {len(latents)} rows")
    waypoints = np.asarray(latents[:num_images])

    def latents_of(frames: np.ndarray) -> np.ndarray:
        legs, parts = np.divmod(frames, frames_per_leg)
        starts, ends = waypoints[legs % num_images], waypoints[(legs + 1) % num_images]
        return slerp(starts, ends, parts / frames_per_leg)

    label = _label(generator, label)
    num_frames = num_images * frames_per_leg
    batches = sample_batches(
        generator.module,
        truncated_variables(generator, truncation),
        latents_of,
        num_frames,
        batch_size=batch_size,
        mesh=mesh,
        labels_of=classes_of(generator, label),
    )
    with progress_bar(num_frames, unit="frame", desc="walking") as bar:
        for batch in batches:
            for image in batch:
                yield image
                bar.update()


def slerp(starts: np.ndarray, ends: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Spherical linear interpolation (White 2016, arXiv:1609.04468): at a constant pace along a great circle.

    A straight line between two normal latents passes nearer to 0 than any latent that a generator was trained on. Here
    the direction turns, and the norm goes from the one to the other evenly. Only between two latents of one direction,
    or of opposite ones, is the way straight.

    Args:
      starts: (N, D).
      ends: (N, D).
      shares: (N,) of the way, 0 to 1.

    Returns:
      (N, D) float32.
    """
    starts, ends, shares = (np.asarray(x, np.float64) for x in (starts, ends, shares[:, None]))
    norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (starts, ends)]
    u, v = (x / np.maximum(norm, np.finfo(np.float64).tiny) for x, norm in zip((starts, ends), norms, strict=True))
    angles = np.arccos(np.sum(u * v, axis=1, keepdims=True).clip(-1, 1))
    sines = np.sin(angles)
    straight = sines < _PARALLEL
    sines = np.where(straight, 1, sines)
    from_start = np.where(straight, 1 - shares, np.sin((1 - shares) * angles) / sines)
    from_end = np.where(straight, shares, np.sin(shares * angles) / sines)
    directions = from_start * u + from_end * v
    return (((1 - shares) * norms[0] + shares * norms[1]) * directions).astype(np.float32)
