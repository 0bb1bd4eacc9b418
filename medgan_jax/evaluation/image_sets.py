"""Sets of images to compare: sampled, read from a folder, or decoded as for training."""

import dataclasses
import functools
import importlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medgan_jax.checkpoint import TrainedGenerator, load_generator
from medgan_jax.config import DataConfig, current_name, parse_data
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.cache import CachedImages, inspect_files, load_cached
from medgan_jax.data.classes import composed, in_proportion
from medgan_jax.data.sources import FileSource, file_source, list_images, open_source
from medgan_jax.data.survey import survey
from medgan_jax.errors import UserError, abbreviate
from medgan_jax.metrics.distribution.features import (
    PIXELS,
    PYRAMID,
    Features,
    efficientnet_features,
    inception_features,
)
from medgan_jax.metrics.distribution.guard import Guard
from medgan_jax.progress import progress_bar
from medgan_jax.sample_folder import GRID, MANIFEST
from medgan_jax.sampling import accepted_attempts, classes_listed, classes_of, numbered_batches
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.verification import claim_of

MIN_SIZE = 16  # px
MAX_IMAGES = 2000  # of each set, for metrics of sets: the time of FID's intervals grows with the cube
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images to compare.

    Attributes:
      title: what they are, for people.
      images: uint8, (N, H, W, C); possibly a memory map.
      labels: the class of each image; None where it is unknown.
      trained_through: the network that their generator's training saw images through; "" where there is none known.
    """

    title: str
    images: np.ndarray
    labels: tuple[str, ...] | None = None
    trained_through: str = ""

    def of_class(self, label: str) -> "ImageSet":
        """The images of one class, or all where the classes are unknown."""
        if self.labels is None:
            return self
        kept = [index for index, name in enumerate(self.labels) if name == label]
        return ImageSet(f"{self.title}, {label}", self.images[kept], (label,) * len(kept))


def choose(
    *,
    checkpoint: str | None,
    fakes: str | None,
    reals: str | None,
    train: str | None,
    data: Mapping[str, Any],
    num_images: int | None,
    seed: int,
    label: str | None = None,
    features: str = "",
) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """The sets that the flags of evaluate.py name.

    Args:
      checkpoint: a workdir, generator folder or PyTorch state dict to sample from; or else
      fakes: a folder of generated images.
      reals: real images to compare with, a path; None for what the training of `checkpoint` held out, or for a source
        of `data` that needs no path.
      train: the training images, a path; None where `reals` is, or where they are not to be compared.
      data: the fields of a data set, as in `configs/default.py`: how to read reals and training images, or where the
        images of the training are now.
      num_images: how many to sample; None for as many as can be compared.
      seed: of the samples.
      label: the one class of a conditional training to evaluate; None for all, in the proportions of the reals.
      features: the name of those to judge by: not of a network that the training saw images through.

    Returns:
      Fakes, reals, and training images or None.

    Raises:
      UserError: they contradict each other, cannot be read, or are no sets to compare.
    """
    if bool(checkpoint) == bool(fakes):
        raise UserError("give either --checkpoint=... or --fakes=..., the images to evaluate")
    if fakes and num_images:
        raise UserError("--num_images is for --checkpoint; of --fakes all are taken")
    if data["group_column"] and not train:
        raise UserError("data.group_column: --reals is halved image by image; leave it empty, or give --train")
    if fakes and label is not None:
        raise UserError(
            f"--label={label}: is for --checkpoint; all --fakes are taken, and data.class_filter chooses reals"
        )
    label = label and composed(label)
    generator = training = train_set = None
    if fakes:
        found = like = from_folder(fakes, field="--fakes", data=data)
    elif checkpoint:
        mesh = data_mesh()
        generator = load_generator(Path(checkpoint), replicated(mesh))
        training = generator.about.get("config")
        title = _title_of(generator, checkpoint)
        sample = functools.partial(sampled, generator, seed=seed, mesh=mesh, title=title, label=label)
        like = sample(1, progress=False)
    if like.trained_through and features == like.trained_through:
        raise UserError(
            f"--features={features}: the training of {checkpoint or fakes} saw its images through this network, so it "
            "cannot judge them; leave it out, for efficientnet-lite1"
        )

    if (
        generator
        and not reals
        and training
        and any(training["data"].get(name) for name in ("holdout_fraction", "folds"))
    ):
        if train:
            raise UserError("--train: the training of --checkpoint is known; leave it out, or give --reals")
        then = data_of_training(generator, data)
        trained_on, apart = load_training(generator, then, otherwise="; or give --reals")
        assert apart is not None  # a share of the images was held out
        real_set = ImageSet(f"{title_of(then)}, held out", apart.images, apart.labels)
        train_set = ImageSet(f"{title_of(then)}, trained on", trained_on.images, trained_on.labels)
        if label is not None:
            real_set, train_set = real_set.of_class(label), train_set.of_class(label)
    elif reals or data["path"] or data["source"] in ("tfds", "phantom"):
        if data["holdout_fraction"]:
            raise UserError("data.holdout_fraction: the training of --checkpoint knows what it held out; leave it out")
        read = functools.partial(_given, data=data, like=like, label=label, convert=generator is not None)
        real_set = read(reals, field="--reals")
        train_set = read(train, field="--train") if train else None
        if fakes:
            found, real_set, train_set = _of_equal_channels(found, real_set, train_set)
    else:
        none = f": the training of {checkpoint} held none out (data.holdout_fraction)" if training else ""
        raise UserError(f"give --reals=..., the real images to compare with{none}")
    _check_enough(real_set, train_set)
    if generator:
        number = num_images or min(len(train_set.images) if train_set else len(real_set.images) // 2, MAX_IMAGES)
        counts = _counts(generator.classes, real_set) if generator.classes and label is None else None
        found = sample(number, counts=counts)
    return found, real_set, train_set


def from_arrays(
    fakes: np.ndarray, reals: np.ndarray, train: np.ndarray | None
) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """Sets of images in memory.

    Raises:
      UserError: they are not uint8, (N, H, H, 1 or 3), all of one size of 16 px or more; or there are too few.
    """
    sets = {"fakes": fakes, "reals": reals, "train": train}
    for name, images in sets.items():
        if images is None and name == "train":
            continue
        found = f"{name}: must be uint8, (N, H, H, 1 or 3)"
        if not isinstance(images, np.ndarray):
            raise UserError(f"{found}, and is a {type(images).__name__}; give a NumPy array")
        shape = images.shape
        if images.dtype != np.uint8 or images.ndim != 4 or shape[1] != shape[2] or shape[3] not in (1, 3):
            raise UserError(f"{found}, and is {images.dtype}, {shape}; crop, scale or convert the images")
        if shape[1] < MIN_SIZE or not len(images):
            raise UserError(f"{found}, with an image or more of {MIN_SIZE} px or more, and is {shape}")
        if shape[1:] != fakes.shape[1:]:
            raise UserError(
                f"{name}: has images of {_spoken(shape[1:])}, and fakes of {_spoken(fakes.shape[1:])}; give one size"
            )
    real_set = ImageSet("the reals", reals)
    train_set = None if train is None else ImageSet("the training images", train)
    _check_enough(real_set, train_set)
    return ImageSet("the fakes", fakes), real_set, train_set


def _check_enough(reals: ImageSet, train: ImageSet | None) -> None:
    """Raises UserError where there are too few reals; without training images they are halved."""
    least = 2 if train else 4
    if len(reals.images) < least:
        raise UserError(f"{reals.title}: {len(reals.images)} images are too few to compare with; give {least} or more")


FEATURES = ("efficientnet-lite1", "efficientnet-lite0", "pyramid", "pixels", "inception", "MODULE:FUNCTION")


def choose_features(name: str | None, inception_weights: str | None) -> Features:
    """The features of a name, one of `FEATURES`; by default the first, or Inception's where its weights are given.

    Raises:
      UserError: there are none of this name, or weights are missing or unusable.
    """
    if name is None:
        name = "inception" if inception_weights else FEATURES[0]
    if (name == "inception") != bool(inception_weights):
        raise UserError("features=inception and inception_weights=FILE go together")
    if inception_weights:
        return inception_features(Path(inception_weights))
    if ":" in name:
        return _imported_features(name)
    if name not in FEATURES:
        raise UserError(f"features={name}: must be one of {', '.join(FEATURES)}")
    return {"pyramid": PYRAMID, "pixels": PIXELS}.get(name) or efficientnet_features(name.rpartition("-")[2])


def _imported_features(name: str) -> Features:
    """A function of the user's, "MODULE:FUNCTION", from uint8 images (N, H, W, C) to vectors (N, D)."""
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # an installed command does not look into the folder it is called from
    try:
        compute = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise UserError(f"features={name}: cannot be imported ({error}); give MODULE:FUNCTION") from error
    lengths: set[int] = set()

    def checked(images: jax.Array) -> np.ndarray:
        number = len(images)
        try:
            vectors = np.asarray(compute(np.array(images)))
            lengths.add(vectors.shape[1])
            is_right = len(vectors) == number and vectors.ndim == 2 and len(lengths) == 1 and vectors.size > 0
            is_right = is_right and not np.iscomplexobj(vectors) and bool(np.isfinite(vectors).all())
        except Exception as error:
            raise UserError(f"features={name}: failed ({type(error).__name__}: {error})") from error
        if not is_right:
            shape = f"{vectors.dtype} {vectors.shape}"
            raise UserError(f"features={name}: must return finite real vectors ({number}, D), and returned {shape}")
        return vectors

    return Features(name, "a function of the user's", checked)


def _title_of(generator: TrainedGenerator, checkpoint: str) -> str:
    if "imported_from" in generator.about:
        return checkpoint
    best_by = generator.about.get("best_by")
    chosen = f", the best by {best_by} to the images that its training held out" if best_by else ""
    return f"{checkpoint} at step {generator.step}{chosen}"


def _counts(classes: Sequence[str], reals: ImageSet) -> list[int]:
    """How many reals there are of each class that a generator has learned."""
    if reals.labels is None:
        raise UserError(
            f"{reals.title}: the images have no labels, so in which proportions to sample the classes "
            f"{abbreviate(classes, 8)} is unknown; give --label=CLASS, or reals with labels (data.source=csv, or a "
            "folder per class)"
        )
    classes = [composed(name) for name in classes]
    counts = Counter(reals.labels)
    if unknown := sorted(set(counts) - set(classes)):
        raise UserError(
            f"{reals.title}: has images of {abbreviate(unknown, 8)}, and the classes of the checkpoint are "
            f"{abbreviate(classes, 8)}; choose one with --label, and with --data.class_filter what it is called there"
        )
    return [counts[name] for name in classes]


def sampled(
    generator: TrainedGenerator,
    number: int,
    *,
    seed: int,
    mesh: Mesh,
    title: str,
    label: str | None = None,
    counts: Sequence[int] | None = None,
    progress: bool = True,
    guard: Guard | None = None,
) -> ImageSet:
    """Images 0 ... `number` - 1 of a seed, as `sample.py` would write them.

    Args:
      generator: what to sample from.
      number: how many.
      seed: decides the latents.
      mesh: the devices.
      title: what to call the images.
      label: the class of all; None for the classes in turn, where the generator has learned any, or as `counts` says.
      counts: of each class, in whose proportions to draw them.
      progress: whether to show a progress bar on stderr.
      guard: draws images again that are too close to a training image.

    Raises:
      UserError: the generator has not learned the class, or the guard lets no draw of an image pass.
    """
    labels_of = classes_listed(in_proportion(number, counts)) if counts else classes_of(generator, label)
    options: dict[str, Any] = {
        "seed": seed, "truncation": None, "batch_size": -(-_BATCH // mesh.size) * mesh.size, "mesh": mesh,
        "labels_of": labels_of,
    }  # fmt: skip
    indices = np.arange(number, dtype=np.int32)
    attempts = np.zeros_like(indices)
    if guard:
        attempts = accepted_attempts(generator, generator.variables, guard, number, **options)
    batches = numbered_batches(generator, generator.variables, indices, attempts, **options)
    parts = []
    with progress_bar(number, unit="image", desc="sampling", disable=not progress) as bar:
        for batch in batches:
            parts.append(batch)
            bar.update(len(batch))
    images, through = np.concatenate(parts), generator.trained_through
    if not labels_of:
        return ImageSet(title, images, trained_through=through)
    labels = tuple(composed(generator.classes[i]) for i in labels_of(np.arange(number)))
    return ImageSet(title if label is None else f"{title}, {label}", images, labels, through)


def from_folder(folder: str, *, field: str, data: Mapping[str, Any]) -> ImageSet:
    """Reads images that are all square and of one size, such as `sample.py` writes; its grid.png is left out.

    Raises:
      UserError: there are none, they differ in size or channels, or cannot be read.
    """
    names = list_images(folder, field)
    if Path(folder, MANIFEST).exists():
        names = [name for name in names if name != GRID]
    source = file_source(folder, names)
    shapes = _shapes(source, data["cache_dir"])
    if not shapes:
        raise UserError(f"{field}={folder}: none of its {len(names)} images can be read; mend them, or give another")
    if len(shapes) > 1:
        (often, _), (other, _) = shapes.most_common(2)
        raise UserError(f"{field}={folder}: holds images of {_spoken(often)} and of {_spoken(other)}; give one size")
    ((height, width, channels),) = shapes
    if height != width or height < MIN_SIZE:
        raise UserError(
            f"{field}={folder}: holds images of {width} x {height} px; give square ones of {MIN_SIZE} px or more"
        )
    reading = {name: data[name] for name in ("cache_dir", "on_bad_image", "window", "frames")}
    how = parse_data(
        {**dataclasses.asdict(DataConfig()), **reading, "path": folder, "include": "*", "allow_synthetic": True}
    )
    source = dataclasses.replace(source, window=how.value_range() or how.window)
    cached = load_cached(
        survey(source, how, image_size=height),
        image_size=height,
        channels=channels,
        cache_dir=how.cache_dir,
        on_bad_image=how.on_bad_image,
    )
    claim = claim_of(Path(folder, names[0]))
    return ImageSet(folder, cached.images, trained_through=claim.trained_through if claim else "")


def _given(
    path: str | None, *, field: str, data: Mapping[str, Any], like: ImageSet, label: str | None, convert: bool
) -> ImageSet:
    """Decodes a data set as training does, to the size and channels of `like`, and takes the class `label` of it.

    `convert` says whether colour may become grey and the other way round, as in training; else the channels are those
    of the files, colour where any has them.
    """
    parsed = parse_data({**data, "path": path or data["path"]})
    size, channels = like.images.shape[2:]
    source = survey(open_source(parsed), parsed, image_size=size)
    if isinstance(source, FileSource):
        shapes = _shapes(source, parsed.cache_dir)
        _check_large_enough(shapes, source, like, field)
        channels = channels if convert else max((shape[2] for shape in shapes), default=channels)
    cached = load_cached(
        source, image_size=size, channels=channels, cache_dir=parsed.cache_dir, on_bad_image=parsed.on_bad_image
    )
    found = ImageSet(title_of(parsed), cached.images, cached.labels)
    if label is None or parsed.class_filter:  # which may be another name for that class
        return found
    if found.labels and label not in found.labels:
        there = abbreviate(sorted(set(found.labels)), 8)
        raise UserError(
            f"--label={label}: the labels of {found.title} are {there}; say with --data.class_filter which is "
            "that class"
        )
    return found.of_class(label)


def data_of_training(generator: TrainedGenerator, data: Mapping[str, Any]) -> DataConfig:
    """How the training of a generator read its images, wherever `data`, fields of a data set, says they are now."""
    stored = generator.about["config"]["data"]
    stored = {current_name(f"data.{name}").removeprefix("data."): value for name, value in stored.items()}
    places = {name: data[name] for name in ("path", "labels_csv", "cache_dir") if data[name]}
    return parse_data({**data, **stored, **places})


def load_training(
    generator: TrainedGenerator, then: DataConfig, *, otherwise: str = ""
) -> tuple[CachedImages, CachedImages | None]:
    """What a generator was trained on, and what its training held out, None for nothing; `then` as `data_of_training`.

    Raises:
      UserError: these are no longer the images of the training; `otherwise` is what else to do about it.
    """
    training, held_out = load_dataset(then, image_size=generator.module.image_size, channels=generator.module.channels)
    if training.digest != generator.about.get("data_digest"):
        raise UserError(
            f"{title_of(then)}: the images are no longer those of the training, so which of them it has not seen is "
            f"unknown; restore them, or say with --data.path where they are now{otherwise}"
        )
    return training, held_out


def title_of(data: DataConfig) -> str:
    """A data set, for people."""
    place = {"tfds": f"{data.tfds_name} {data.split}", "phantom": "the phantoms"}.get(data.source, data.path)
    return place + (f", {data.class_filter}" if data.class_filter else "")


def _shapes(source: FileSource, cache_dir: str) -> Counter[tuple[int, int, int]]:
    """How many files have which height, width and channels; files that cannot be read are left to decoding."""
    return Counter(info[:3] for info in inspect_files(source, cache_dir=cache_dir) if info)


def _check_large_enough(shapes: Counter[tuple[int, int, int]], source: FileSource, like: ImageSet, field: str) -> None:
    """Raises UserError where files are smaller than the images of `like`."""
    for theirs in sorted(shapes):
        if min(theirs[:2]) < like.images.shape[1]:
            raise UserError(
                f"{field}={source.root}: has images of {_spoken(theirs)}, and {like.title} of "
                f"{_spoken(like.images.shape[1:])}: enlarged ones would be compared for their blur"
            )


def _of_equal_channels(*sets: ImageSet | None) -> tuple[Any, ...]:
    """The sets, each grey where one of them is: one stored as colour becomes grey, if all its channels are equal.

    Raises:
      UserError: a set is grey, and another has colours.
    """
    given = [images for images in sets if images]
    grey = next((images for images in given if images.images.shape[3] == 1), None)
    if grey is None:
        return sets
    for other in given:
        if not all((image == image[..., :1]).all() for image in other.images):
            raise UserError(
                f"{other.title}: has images in colour, and {grey.title} has grey ones: compare colour with colour, and "
                "grey with grey"
            )
    return tuple(images and dataclasses.replace(images, images=images.images[..., :1]) for images in sets)


def _spoken(shape: tuple[Any, ...]) -> str:
    height, width, channels = shape
    return f"{width} x {height} px with {channels} channel{'s' if channels > 1 else ''}"
