"""A walk through latent space as a movie: images turn into each other, and the last into the first."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from medgan_jax.checkpoint import TrainedGenerator
from medgan_jax.errors import UserError
from medgan_jax.movie import check_movie_path, write_movie
from medgan_jax.progress import progress_bar
from medgan_jax.sampling import classes_of, sample_batches, seeded_latents

_FRAMES_PER_LEG = 30  # from one image to the next
_FRAMES_PER_SECOND = 15.0
_DEFAULT_WAYPOINTS = 8
_SIDE = 256  # px: smaller images are enlarged by a whole number, to about this


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
    movie = Path(path).expanduser()
    check_movie_path(movie)
    return movie


def write_walk(
    generator: TrainedGenerator,
    path: Path,
    *,
    num_images: int | None,
    seed: int,
    batch_size: int,
    mesh: Mesh,
    latents: np.ndarray | None = None,
    label: str | None = None,
    truncation: float | None = None,
) -> None:
    """Writes the movie of one walk from image to image, two seconds each, that ends where it began.

    One image at a time is shown, as large as a viewer needs to follow what changes: a generator that has learned
    images by heart jumps from one to another, where others change little by little.

    Args:
      generator: what to sample from.
      path: a .webp, .gif or .mp4 file.
      num_images: how many images to pass through, 2 or more; None for one for each latent, or 8.
      seed: the images are those that `sample_to_folder` numbers 0, 1, ... of this seed and `label`.
      batch_size: frames generated at once.
      mesh: the devices.
      latents: (at least num_images, latent_dim), to pass through in order instead of a seed.
      label: the class of all images; None for the generator's first, if it has learned any: a walk keeps to one, as
        there is nothing between two classes.
      truncation: of the latents, see `seeded_latents`; goes with a seed.

    Raises:
      UserError: the generator has not learned the class; fewer than two images, or fewer latents than images, are asked
        for; or the movie cannot be written.
    """
    if num_images is None:
        num_images = _DEFAULT_WAYPOINTS if latents is None else len(latents)
    if num_images < 2:
        raise UserError(f"--interpolate={path}: passes through two images or more, and this is {num_images}")
    if latents is None:
        numbers = np.arange(num_images, dtype=np.int32)
        latents = seeded_latents(seed, numbers, latent_dim=generator.latent_dim, truncation=truncation)
    elif num_images > len(latents):
        raise UserError(f"--num_images={num_images}, but --latents has {len(latents)} rows")
    waypoints = np.asarray(latents[:num_images])
    label = next(iter(generator.classes), None) if label is None else label
    number = num_images * _FRAMES_PER_LEG

    def latents_of(frames: np.ndarray) -> np.ndarray:
        legs, parts = np.divmod(frames, _FRAMES_PER_LEG)
        starts, ends = waypoints[legs % num_images], waypoints[(legs + 1) % num_images]
        return slerp(starts, ends, parts / _FRAMES_PER_LEG)

    def frames() -> Iterator[np.ndarray]:
        factor = -(-_SIDE // generator.module.image_size)
        batches = sample_batches(
            generator.module,
            generator.variables,
            latents_of,
            number,
            batch_size=batch_size,
            mesh=mesh,
            labels_of=classes_of(generator, label),
        )
        with progress_bar(number, unit="frame", desc="walking") as bar:
            for batch in batches:
                for image in batch:
                    yield image.repeat(factor, axis=0).repeat(factor, axis=1)
                    bar.update()

    write_movie(path, frames(), frames_per_second=_FRAMES_PER_SECOND)


def slerp(starts: np.ndarray, ends: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Spherical linear interpolation (White 2016, arXiv:1609.04468): at a constant pace along a great circle.

    A straight line between two normal latents passes nearer to 0 than any latent that a generator was trained on. Here
    the direction turns, and the norm goes from the one to the other evenly.

    Args:
      starts: (N, D).
      ends: (N, D). Where one is opposite to its start, the way round is chosen by a fixed rule.
      shares: (N,) of the way, 0 to 1.

    Returns:
      (N, D) float32.
    """
    starts, ends, shares = (np.asarray(x, np.float64) for x in (starts, ends, shares[:, None]))
    start_norms, end_norms = (np.linalg.norm(x, axis=1, keepdims=True) for x in (starts, ends))
    u, v = _divided(starts, start_norms), _divided(ends, end_norms)
    u, v = np.where(start_norms > 0, u, v), np.where(end_norms > 0, v, u)  # 0 has any direction
    along = np.sum(u * v, axis=1, keepdims=True)
    across = v - along * u
    opposite = (along < 0) & (np.linalg.norm(across, axis=1, keepdims=True) < 1e-6)
    axes = np.eye(u.shape[1])[np.abs(u).argmin(axis=1)]
    across = np.where(opposite, axes - np.sum(axes * u, axis=1, keepdims=True) * u, across)
    length = np.linalg.norm(across, axis=1, keepdims=True)
    angles = shares * np.where(opposite, np.pi, np.arctan2(length, along))
    directions = np.cos(angles) * u + np.sin(angles) * _divided(across, length)
    return (((1 - shares) * start_norms + shares * end_norms) * directions).astype(np.float32)


def _divided(vectors: np.ndarray, norms: np.ndarray) -> np.ndarray:
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
