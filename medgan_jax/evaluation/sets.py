"""Sets of images to compare: sampled, read from a folder, or decoded as for training."""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from medgan_jax.checkpoint import TrainedGenerator, load_generator
from medgan_jax.config import DataConfig, parse_data
from medgan_jax.data.cache import load_cached
from medgan_jax.data.pipeline import load_dataset
from medgan_jax.data.sources import FileSource, list_images, open_source
from medgan_jax.errors import UserError
from medgan_jax.images import ImageError, image_shape
from medgan_jax.measures.features import PIXELS, PYRAMID, Features, inception_features
from medgan_jax.sampling import GRID, MANIFEST, sample_batches, seeded_latents
from medgan_jax.sharding import data_mesh, replicated

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images to compare.

    Attributes:
      title: what they are, for people.
      images: uint8, (N, H, W, C); possibly a memory map.
    """

    title: str
    images: np.ndarray


def choose(
    *,
    checkpoint: str | None,
    fakes: str | None,
    reals: str | None,
    train: str | None,
    data: Mapping[str, Any],
    num_images: int | None,
    seed: int,
) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """The sets that the flags of evaluate.py name.

    Args:
      checkpoint: a workdir or generator folder to sample from; or else
      fakes: a folder of generated images.
      reals: images to judge by, a path; None for what the training of `checkpoint` held out, or for a source of
        `data` that needs no path.
      train: the training images, a path; None where `reals` is, or where they are not to be compared.
      data: the fields of a data set, as in `configs/default.py`: how to read reals and training images.
      num_images: how many to sample; None for as many as can be compared.
      seed: of the samples.

    Returns:
      Fakes, reals, and training images or None.

    Raises:
      UserError: they contradict each other, cannot be read, or are no sets to compare.
    """
    if bool(checkpoint) == bool(fakes):
        raise UserError("give either --checkpoint=... or --fakes=..., the images to judge")
    mesh = data_mesh()
    if fakes:
        if num_images:
            raise UserError("--num_images is for --checkpoint; of --fakes all are taken")
        generator, made = None, from_folder(fakes, field="--fakes", cache_dir=data["cache_dir"])
        like = made
    else:
        generator = load_generator(Path(checkpoint), replicated(mesh))
        title = f"{checkpoint} at step {generator.step}"
        like = sampled(generator, 1, seed=seed, mesh=mesh, title=title, progress=False)

    def decoded(path: str | None, flag: str) -> ImageSet:
        fields = {**data, "path": path or data["path"], "holdout_fraction": 0.0}
        return from_data(parse_data(fields), like, field=flag, convert=generator is not None)

    if reals or data["path"] or data["source"] in ("tfds", "phantom"):
        judges, seen = decoded(reals, "--reals"), decoded(train, "--train") if train else None
    elif train:
        raise UserError("--train is to be compared with reals that the training has not seen: give --reals=...")
    elif generator is None:
        raise UserError("give --reals=..., the images to judge by")
    else:
        trained_on = parse_data({**data, **generator.about["config"]["data"], "cache_dir": data["cache_dir"]})
        if not trained_on.holdout_fraction:
            raise UserError(
                f"give --reals=..., the images to judge by: the training of {checkpoint} held none out "
                "(data.holdout_fraction)"
            )
        seen, judges = held_out(trained_on, like)
    if generator:
        number = num_images or len(seen.images if seen else judges.images) // (1 if seen else 2)
        made = sampled(generator, max(1, number), seed=seed, mesh=mesh, title=title)
    return made, judges, seen


def choose_features(name: str | None, inception_weights: str | None) -> Features:
    """The features that the flags of evaluate.py name. Raises UserError where weights are missing or unusable."""
    if name is None:
        name = "inception" if inception_weights else "pyramid"
    if (name == "inception") != bool(inception_weights):
        raise UserError("--features=inception and --inception_weights=FILE go together")
    return (
        inception_features(Path(inception_weights))
        if inception_weights
        else {"pyramid": PYRAMID, "pixels": PIXELS}[name]
    )


def sampled(
    generator: TrainedGenerator, number: int, *, seed: int, mesh: Mesh, title: str, progress: bool = True
) -> ImageSet:
    """Images 0 ... `number` - 1 of a seed, as `sample.py` would write them."""
    module = generator.module
    images = np.empty((number, module.image_size, module.image_size, module.channels), np.uint8)
    latents = functools.partial(seeded_latents, seed, latent_dim=generator.latent_dim)
    batch_size = -(-_BATCH // mesh.size) * mesh.size
    done = 0
    with tqdm(total=number, unit="image", desc="sampling", disable=not progress) as bar:
        for batch in sample_batches(module, generator.variables, latents, number, batch_size=batch_size, mesh=mesh):
            images[done : done + len(batch)] = batch
            done += len(batch)
            bar.update(len(batch))
    return ImageSet(title, images)


def from_folder(folder: str, *, field: str, cache_dir: str = "") -> ImageSet:
    """Reads images that are all square and of one size, such as `sample.py` writes; its grid.png is left out.

    Raises:
      UserError: there are none, they differ in size or channels, or cannot be read.
    """
    names = list_images(folder, field)
    if Path(folder, MANIFEST).exists():
        names = [name for name in names if name != GRID]
    source = FileSource(folder, tuple(names), None)
    shapes = _shapes(source)
    if not shapes:
        raise UserError(f"{field}={folder}: none of its {len(names)} images can be read; mend them, or give another")
    if len(shapes) > 1:
        (often, _), (other, _) = shapes.most_common(2)
        raise UserError(f"{field}={folder}: holds images of {_spoken(often)} and of {_spoken(other)}; give one size")
    ((height, width, channels),) = shapes
    if height != width:
        raise UserError(f"{field}={folder}: holds images of {width} x {height} px; give square ones")
    cached = load_cached(source, image_size=height, channels=channels, cache_dir=cache_dir)
    return ImageSet(f"{folder}", cached.images)


def from_data(data: DataConfig, like: ImageSet, *, field: str, convert: bool) -> ImageSet:
    """Decodes a data set as training does, to the size and channels of `like`.

    Args:
      data: which images.
      like: the images that they are to be compared with.
      field: what to call the data set in messages.
      convert: whether colour may become grey and the other way round, as in training.

    Raises:
      UserError: it cannot be read; or its images are smaller than those of `like`, or have other channels.
    """
    source = open_source(data)
    if isinstance(source, FileSource):
        _check_like(source, like, field, convert)
    size, channels = like.images.shape[2:]
    cached = load_cached(
        source, image_size=size, channels=channels, cache_dir=data.cache_dir, on_bad_image=data.on_bad_image
    )
    return ImageSet(_title(data), cached.images)


def held_out(data: DataConfig, like: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The training set of a generator, and what was held out of it. Raises UserError when they cannot be read."""
    size, channels = like.images.shape[2:]
    training, apart = load_dataset(data, image_size=size, channels=channels)
    return ImageSet(f"{_title(data)}, training part", training.images), ImageSet(
        f"{_title(data)}, held out", apart.images
    )


def _title(data: DataConfig) -> str:
    place = {"tfds": f"{data.tfds_name} {data.split}", "phantom": "the phantoms"}.get(data.source, data.path)
    return place + (f", {data.label}" if data.label else "")


def _shapes(source: FileSource) -> Counter[tuple[int, int, int]]:
    """How many files have which height, width and channels; those that cannot be read are left to decoding."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    for name in source.names:
        with contextlib.suppress(ImageError, OSError):
            shapes[image_shape(Path(source.root, name))] += 1
    return shapes


def _check_like(source: FileSource, like: ImageSet, field: str, convert: bool) -> None:
    ours = like.images.shape[1:]
    for theirs in sorted(_shapes(source)):
        if min(theirs[:2]) < ours[0]:
            fault = "enlarged ones would be judged for their blur"
        elif theirs[2] != ours[2] and not convert:
            fault = "compare colour with colour, and grey with grey"
        else:
            continue
        raise UserError(
            f"{field}={source.root}: has images of {_spoken(theirs)}, and {like.title} of {_spoken(ours)}: {fault}"
        )


def _spoken(shape: tuple[Any, ...]) -> str:
    height, width, channels = shape
    return f"{width} x {height} px with {channels} channel{'s' if channels > 1 else ''}"
