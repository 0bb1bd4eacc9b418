"""What a balanced set is made from: generators, and real images that no training held out."""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from medgan_jax.checkpoint import TrainedGenerator, load_generator
from medgan_jax.config import DataConfig, default_config, parse_data
from medgan_jax.data.cache import CachedImages, content_ids, inspect_files, load_cached
from medgan_jax.data.sources import FileSource, ImageSource, open_source
from medgan_jax.data.split import hold_out, joined_groups
from medgan_jax.data.survey import survey
from medgan_jax.errors import UserError, abbreviate
from medgan_jax.evaluation.image_sets import data_of_training, load_training, title_of
from medgan_jax.files import local_path
from medgan_jax.sharding import replicated

_SHOWN = 8  # names in a message


@dataclasses.dataclass(frozen=True)
class Reals:
    """Real images to train on.

    Attributes:
      source: where they are, with labels; all can be read.
      images: uint8, (N, H, W, C), at the size of the generators.
      digest: of images and labels.
      as_files: whether each is a file that gives the same image in any set of such files, with all settings at their
        default.
    """

    source: ImageSource
    images: np.ndarray
    digest: str
    as_files: bool

    @property
    def labels(self) -> np.ndarray:
        """str, (N,), the class of each."""
        return np.array(self.source.labels)

    @property
    def counts(self) -> dict[str, int]:
        """How many there are, by class in alphabetical order."""
        return dict(sorted(Counter(self.source.labels or ()).items()))


@dataclasses.dataclass(frozen=True)
class Drawer:
    """A generator that draws images of a class.

    Attributes:
      path: where it is.
      generator: itself.
      training: what it has seen; of an imported network, all reals to train on.
      groups: int, (M,), of `training`: the same number for images of one patient, or of equal content.
      ours: bool, (M,), which of `training` are of the class.
      held_out: the images of the class that its training held out, uint8 (L, H, W, C).
    """

    path: Path
    generator: TrainedGenerator
    training: CachedImages
    groups: np.ndarray
    ours: np.ndarray
    held_out: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Training:
    """What a training has seen and held out; of each image, what it is made from, as `ImageSource.content_ids`."""

    seen: CachedImages
    seen_ids: list[str]
    held_out: CachedImages | None
    held_out_ids: list[str]


def open_sources(checkpoints: Sequence[str], data: Mapping[str, Any], mesh: Mesh) -> tuple[dict[str, Drawer], Reals]:
    """Loads generators, and finds the real images that may stand beside theirs.

    What a training held out is left out, with all of its group. Images that no training read are divided by the
    `data.holdout_fraction` of the first one. Images are matched by content, so a training may have read one class from
    a folder of its own.

    Args:
      checkpoints: of each, PATH as in `load_generator`, or LABEL=PATH.
      data: fields of a data set. Those that are not at their default say how to read the labelled images; the others
        are those of the first training.
      mesh: the devices.

    Returns:
      What draws each class, of those that a generator was given for; and the reals to train on.

    Raises:
      UserError: a generator cannot be loaded, or the class that it draws is unknown, or another draws it too; images
        are not those of a training, or have no labels; one training has seen what another held out; or generators
        differ in size.
    """
    loaded = [(label, path, load_generator(path, replicated(mesh))) for label, path in map(_named, checkpoints)]
    generators = {path: generator for _, path, generator in loaded}
    size, channels = _shape(generators)
    whole = _data_of_all(generators, data)
    source = survey(open_source(whole), whole, image_size=size)
    if source.labels is None:
        raise UserError(
            f"{title_of(whole)}: the images have no labels, so how many a class has is unknown; sort them into a "
            "folder for each class, or give --data.source=csv, --data.path and --data.labels_csv"
        )
    ids = content_ids(source, cache_dir=whole.cache_dir)
    group_of = dict(zip(ids, joined_groups(source, ids), strict=True))
    trainings = {path: _load_training(g, data) for path, g in generators.items() if "config" in g.about}
    held = _held_groups(trainings, group_of, title_of(whole))
    if whole.holdout_fraction and len(held) < len(set(group_of.values())):
        apart = set(hold_out(source, whole.holdout_fraction, ids)[1].names)
        for name, id in zip(source.names, ids, strict=True):
            held.setdefault(group_of[id], name in apart)
    sides: tuple[list[int], list[int]] = [], []
    for index, id in enumerate(ids):
        sides[held.get(group_of[id], False)].append(index)

    def read(indices: list[int]) -> tuple[CachedImages, list[str]]:
        options: dict[str, Any] = {"cache_dir": whole.cache_dir, "on_bad_image": whole.on_bad_image}
        images = load_cached(source.select(indices), image_size=size, channels=channels, **options)
        return images, [id_of[key] for key in _keys(images)]

    id_of = dict(zip(_keys(source), ids, strict=True))
    kept, kept_ids = read(sides[False])
    index_of = {key: index for index, key in enumerate(_keys(source))}
    real = source.select([index_of[key] for key in _keys(kept)])
    reals = Reals(real, kept.images, kept.digest, _as_files(real, whole.cache_dir))
    labels_of: dict[str, set[str]] = {}  # of a content: two where it is labelled twice
    for id, name in zip(ids, source.labels, strict=True):
        labels_of.setdefault(id, set()).add(name)

    drawers: dict[str, Drawer] = {}
    for label, path, generator in loaded:
        if training := trainings.get(path):
            seen_labels = [labels_of[id] for id in training.seen_ids]
        else:
            training = _Training(kept, kept_ids, *(read(sides[True]) if sides[True] else (None, [])))
            seen_labels = []
        groups = np.unique([group_of[id] for id in training.seen_ids], return_inverse=True)[1]
        for name in _classes(label, path, generator, seen_labels, reals.counts):
            if name in drawers:
                raise UserError(
                    f"--checkpoint: both {drawers[name].path} and {path} draw {name}; give one, or LABEL=PATH for one "
                    "class of a conditional run"
                )
            tells = bool(generator.classes or not seen_labels)  # else all that was read is of the class
            ours = _is_of(training.seen, name if tells else "")
            apart_images = training.held_out
            held_out = (
                apart_images.images[_is_of(apart_images, name if tells else "")] if apart_images else kept.images[:0]
            )
            drawers[name] = Drawer(path, generator, training.seen, groups, ours, held_out)
    return drawers, reals


def _named(checkpoint: str) -> tuple[str, Path]:
    """LABEL, "" where there is none, and PATH, which may hold an equals sign."""
    label, equals, path = checkpoint.partition("=")
    whole = local_path("--checkpoint", checkpoint)
    if not equals or whole.exists():
        return "", whole
    return label, local_path("--checkpoint", path)


def _shape(generators: Mapping[Path, TrainedGenerator]) -> tuple[int, int]:
    """The image size and channels of all."""
    shapes = {(g.module.image_size, g.module.channels): path for path, g in generators.items()}
    (shape, first), *others = shapes.items()
    for other, path in others:
        raise UserError(
            f"--checkpoint: images of {first} have {shape[0]} px and {shape[1]} channels, those of {path} {other[0]} "
            f"px and {other[1]}; give generators of one size, else the size tells the class"
        )
    return shape


def _data_of_all(generators: Mapping[Path, TrainedGenerator], data: Mapping[str, Any]) -> DataConfig:
    """How to read the images of all classes."""
    default = default_config().data
    given = {name: value for name, value in data.items() if value != default[name]}
    if "class_filter" in given:
        raise UserError("--data.class_filter: the set has all classes; leave it out")
    trained = [generator for generator in generators.values() if "config" in generator.about]
    if trained:
        if "holdout_fraction" in given:
            raise UserError(
                "--data.holdout_fraction: the training of --checkpoint knows what it held out; leave it out"
            )
        stored = dataclasses.asdict(data_of_training(trained[0], data))
        return parse_data({**stored, **given, "class_filter": ""})
    if not (data["path"] or data["source"] in ("tfds", "phantom")):
        raise UserError(
            f"{next(iter(generators))}: an imported network does not say which images it goes with; give --data.path, "
            "and what else is needed to read them"
        )
    return parse_data(data)


def _load_training(generator: TrainedGenerator, data: Mapping[str, Any]) -> _Training:
    """What a training read: where it was then, or where `data` says it is now."""
    moved = data_of_training(generator, data)
    try:
        return _read_training(generator, moved)
    except UserError:
        stored = data_of_training(generator, {**data, "path": "", "labels_csv": ""})
        if stored == moved:
            raise
        with contextlib.suppress(UserError):
            return _read_training(generator, stored)
        raise


def _read_training(generator: TrainedGenerator, then: DataConfig) -> _Training:
    source = survey(open_source(then), then, image_size=generator.module.image_size, progress=False)
    seen, held_out = load_training(generator, then)
    id_of = dict(zip(_keys(source), content_ids(source, cache_dir=then.cache_dir), strict=True))
    apart = _keys(held_out) if held_out else ()
    return _Training(seen, [id_of[key] for key in _keys(seen)], held_out, [id_of[key] for key in apart])


def _keys(images: ImageSource | CachedImages) -> list[tuple[str, int]]:
    """What tells images apart: frames of one file have one name."""
    return list(zip(images.names, images.numbers or itertools.repeat(0), strict=False))


def _as_files(source: ImageSource, cache_dir: str) -> bool:
    """See `Reals`."""
    if not isinstance(source, FileSource) or source.files or (source.window, source.fit) != ("auto", "crop"):
        return False
    infos = inspect_files(source, cache_dir=cache_dir, progress=False)
    # Where a file does not say which value is white, the brightest of all files decides.
    return not any(info and (info.frames > 1 or info.brightest) for info in infos)


def _held_groups(trainings: Mapping[Path, _Training], group_of: Mapping[str, str], place: str) -> dict[str, bool]:
    """Whether a group was held out, for all groups that the trainings read."""
    found: dict[str, tuple[bool, Path]] = {}
    for path, training in trainings.items():
        for ids, held in ((training.seen_ids, False), (training.held_out_ids, True)):
            for id in ids:
                if id not in group_of:
                    raise UserError(f"{path}: was trained on images that are not in {place}; give runs of one data set")
                was_held, other = found.setdefault(group_of[id], (held, path))
                if was_held != held:
                    one, two = (other, path) if was_held else (path, other)
                    raise UserError(
                        f"{two}: was trained on images of {group_of[id]}, which {one} held out; give runs with the "
                        "same data.holdout_fraction and data.group_column"
                    )
    return {group: held for group, (held, _) in found.items()}


def _classes(
    label: str, path: Path, generator: TrainedGenerator, seen: Sequence[set[str]], there: Mapping[str, int]
) -> Sequence[str]:
    """The classes to draw from a generator.

    Args:
      label: which was asked for, "" for none.
      path: of the generator.
      generator: itself.
      seen: the labels of each image that it was trained on; none of an imported network.
      there: the classes of the reals.
    """
    known: Sequence[str] = generator.classes
    if not known and seen:
        known = sorted(set.intersection(*seen))
        if not known:
            raise UserError(
                f"{path}: was trained on images of {abbreviate(sorted(set.union(*seen)), _SHOWN)}, and does not tell "
                "them apart; train with conditional=True, or with data.class_filter"
            )
    if label:
        if known and label not in known:
            raise UserError(f"--checkpoint={label}={path}: draws {abbreviate(known, _SHOWN)}; give a class of it")
        known = (label,)
    if not known:
        raise UserError(f"--checkpoint={path}: does not say which class it draws; give --checkpoint=LABEL={path}")
    if unknown := sorted(set(known) - set(there)):
        raise UserError(
            f"--checkpoint={path}: draws {abbreviate(unknown, _SHOWN)}, and the classes of the real images are "
            f"{abbreviate(list(there), _SHOWN)}; give one of these as --checkpoint=LABEL={path}"
        )
    return known


def _is_of(images: CachedImages, label: str) -> np.ndarray:
    """bool, (N,), which are of a class; all where it is ""."""
    return np.array([not label or name == label for name in images.labels or [label] * len(images.names)], bool)
