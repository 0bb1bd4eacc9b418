"""Where images come from: a folder, a folder with a table of labels, a TFDS data set, or phantoms.

Each is an `ImageSource`, opened by `open_source`. Opening lists and labels the images; no pixel is read.
"""

import abc
import dataclasses
import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from medgan_jax.data import phantom
from medgan_jax.data.labels import match_labels, read_labels
from medgan_jax.errors import UserError, abbreviate, reason_of
from medgan_jax.files import expanded
from medgan_jax.images import ImageError, convert_channels, decode_image, resize_crop

if TYPE_CHECKING:
    from medgan_jax.config import DataConfig

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
PHANTOM_SEED = 0  # the phantoms are one fixed data set, whatever the seed of the training


@dataclasses.dataclass(frozen=True)
class ImageSource(abc.ABC):
    """Images in a stable order.

    Attributes:
      root: where the images lie, for messages.
      names: what a person calls each image: its path below `root`, or its place among the records.
      labels: the class of each image; None if the set is unlabelled.
      groups: the patient or lesion that each image shows; None where that is unknown.
      numbers: of each image among the records or phantoms; None for files.
    """

    root: str
    names: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def select(self, indices: Sequence[int]) -> Self:
        """Some of the images, in the order of `indices`."""
        columns = {name: getattr(self, name) for name in ("names", "labels", "groups", "numbers")}
        kept: dict[str, Any] = {
            name: tuple(column[index] for index in indices) for name, column in columns.items() if column
        }
        return dataclasses.replace(self, **kept)

    @abc.abstractmethod
    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """Decodes one image, resized and cropped: uint8, (image_size, image_size, channels). Thread-safe.

        Raises:
          ImageError: its bytes are not a usable image.
          OSError: its bytes cannot be read.
        """

    @abc.abstractmethod
    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """What each image is made from: equal ids promise equal pixels, wherever the files lie."""


def open_source(data: "DataConfig") -> ImageSource:
    """Opens the source that the config names.

    Raises:
      UserError: it is missing, empty, contradictory, or cannot be read.
    """
    paths: dict[str, Any] = {field: expanded(getattr(data, field)) for field in ("path", "labels_csv")}
    data = dataclasses.replace(data, **paths)
    openers = {"folder": _open_folder, "csv": _open_csv, "tfds": _open_tfds, "phantom": _open_phantoms}
    source = openers[data.source](data)
    label = data.class_filter
    if not label:
        return source
    if source.labels is None:
        raise UserError(
            f"data.class_filter={label!r}, but the images of {source.root} have no labels: leave it empty, sort them "
            "into a folder per class, or use data.source=csv"
        )
    if label not in source.labels:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(source.labels).items()))
        raise UserError(f"data.class_filter={label!r} is not a label of {source.root}; there are: {counts}")
    return source.select([index for index, name in enumerate(source.labels) if name == label])


class FileSource(ImageSource):
    """Image files below the folder `root`."""

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        data = Path(self.root, self.names[index]).read_bytes()
        return resize_crop(decode_image(data, channels=channels, min_side=image_size), image_size)

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        return digest_files([Path(self.root, name) for name in self.names])


def _open_folder(data: "DataConfig") -> FileSource:
    """A flat folder of images, or a subfolder for each class, as torchvision's ImageFolder has it."""
    names = list_images(data.path)
    flat = [name for name in names if "/" not in name]
    if flat and len(flat) < len(names):
        raise UserError(
            f"data.path={data.path} holds images ({abbreviate(flat)}) beside folders of images, so their classes "
            "are unclear: move the loose images into a class folder, or elsewhere"
        )
    return FileSource(data.path, tuple(names), None if flat else tuple(name.split("/")[0] for name in names))


def list_images(folder: str, field: str = "data.path") -> list[str]:
    """Lists the image files anywhere below a folder, by extension, as sorted relative paths; hidden ones are left out.

    Raises:
      UserError: the folder is missing, empty, not a folder, or cannot be read.
    """
    if not folder:
        raise UserError(f"{field} is empty: give the folder of images")
    try:
        names = sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in _walk(folder, frozenset()))
    except OSError as error:
        raise UserError(f"{field}={folder}: {reason_of(error)} ({error.filename}); give a folder of images") from error
    if not names:
        suffixes = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"{field}={folder} holds no images: there is no file ending in {suffixes}")
    return names


def _walk(folder: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:  # a link to a folder above
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):
                yield from _walk(entry.path, ancestors | {identity})
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield entry.path


def _open_csv(data: "DataConfig") -> FileSource:
    """A folder of images, and a table that labels each of them."""
    names = list_images(data.path)

    def column(field: str, *, needs_header: bool) -> tuple[str, ...]:
        table = read_labels(
            data.labels_csv,
            image_column=data.image_column,
            label_column=getattr(data, field),
            field=field,
            needs_header=needs_header,
        )
        return tuple(match_labels(names, table, folder=data.path, table_path=data.labels_csv))

    # Without a header the second column holds the labels, whatever is asked for.
    groups = column("group_column", needs_header=True) if data.group_column else None
    return FileSource(data.path, tuple(names), column("label_column", needs_header=False), groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(ImageSource):
    """Records of a prepared TFDS data set, read without TensorFlow."""

    numbers: tuple[int, ...]
    records: Sequence[dict[str, Any]]  # of the whole split
    feature: str  # the one that holds the image
    shards: tuple[Path, ...]
    split: str

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        try:
            image = self.records[self.numbers[index]][self.feature]
        except (RuntimeError, ValueError) as error:
            raise ImageError("damaged record") from error
        if isinstance(image, bytes):
            image = decode_image(image, channels=channels, min_side=image_size)
        return resize_crop(convert_channels(np.asarray(image), channels), image_size)

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        shards = hashlib.blake2b(" ".join(digest_files(self.shards)).encode(), digest_size=16).hexdigest()
        return [f"{shards} {self.split} {self.feature} {number}" for number in self.numbers]


def _open_tfds(data: "DataConfig") -> TfdsSource:
    import tensorflow_datasets as tfds  # slow, and needed here alone

    name = data.tfds_name
    place = f"data.tfds_name={name}"
    try:
        builder = tfds.builder(name, data_dir=data.path or None)
    except ImportError as error:  # of what reads an address such as gs://bucket
        raise UserError(f"data.path={data.path}: cannot be read ({error}); do so, or copy its files here") from error
    except ValueError as error:  # DatasetNotFoundError among them
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
        raise UserError(
            f"{place} is not a data set of TFDS"
            + (f", nor one that was prepared in data.path={data.path}" if data.path else "")
            + (f"; did you mean {' or '.join(near)}?" if near else "; give its NAME, or NAME/CONFIG")
        ) from error
    if not builder.is_prepared() or builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        directory = f", data_dir={data.path!r}" if data.path else ""
        raise UserError(
            f"{place} is not prepared as array_record in {builder.data_dir}; do so (this may download it): "
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{directory})'
            ".download_and_prepare(file_format='array_record')\""
        )

    features = builder.info.features
    image = next((key for key, feature in features.items() if _holds_image(tfds, feature)), None)
    if image is None:
        raise UserError(f"{place} has no image; its features are {', '.join(features)}")
    encoded = isinstance(features[image], tfds.features.Image)
    try:
        shards = builder.info.splits[data.split].filepaths
        records = builder.as_data_source(data.split, decoders={image: tfds.decode.SkipDecoding()} if encoded else None)
    except (KeyError, ValueError) as error:
        splits = list(builder.info.splits)
        raise UserError(
            f"data.split={data.split!r} of {name} is unknown or empty: give one of {', '.join(splits)}, or a slice "
            f"such as {splits[0]}[:80%]"
        ) from error
    try:
        labels = _tfds_labels(tfds, features, records)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{place} in {builder.data_dir} is damaged ({error}): prepare it again") from error
    return TfdsSource(
        root=str(builder.data_dir),
        names=tuple(f"{data.split}[{number}]" for number in range(len(records))),
        labels=labels,
        numbers=tuple(range(len(records))),
        records=records,
        feature=image,
        shards=tuple(Path(shard) for shard in shards),
        split=data.split,
    )


def _holds_image(tfds: Any, feature: Any) -> bool:
    if isinstance(feature, tfds.features.Image):
        return True
    return type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8 and feature.shape[2:] in [(1,), (3,)]


def _tfds_labels(tfds: Any, features: Any, records: Sequence[dict[str, Any]]) -> tuple[str, ...] | None:
    """Classes by the first ClassLabel feature, or else by a text called "label"."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.ClassLabel):
            numbers = [int(records[index][key]) for index in range(len(records))]
            return tuple(feature.int2str(number) if number >= 0 else "unknown" for number in numbers)
    if "label" in features and isinstance(features["label"], tfds.features.Text):
        return tuple(records[index]["label"].decode() for index in range(len(records)))
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomSource(ImageSource):
    """Phantoms of the fixed data set `PHANTOM_SEED`."""

    numbers: tuple[int, ...]

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        image = phantom.phantom_image(self.numbers[index], seed=PHANTOM_SEED, image_size=image_size)
        return convert_channels(image, channels)

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        return [f"phantom {phantom.VERSION} {PHANTOM_SEED} {number}" for number in self.numbers]


def _open_phantoms(data: "DataConfig") -> PhantomSource:
    numbers = tuple(range(data.num_phantoms))
    return PhantomSource(
        "the phantoms",
        tuple(f"phantom_{number:05d}" for number in numbers),
        tuple(phantom.phantom_label(number, seed=PHANTOM_SEED) for number in numbers),
        numbers=numbers,
    )
