"""Where images come from: a folder, a folder with a table of labels, a TFDS data set, or phantoms.

All are read through one small protocol, `ImageSource`, and opened by `open_source`. Opening lists and labels the
images; no pixel is read.
"""

import dataclasses
import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medgan_jax.data import phantom
from medgan_jax.data.labels import match_labels, read_labels
from medgan_jax.errors import UserError, abbreviate, reason_of
from medgan_jax.images import ImageError, convert_channels, decode_image, resize_crop

if TYPE_CHECKING:
    from medgan_jax.config import DataConfig

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
PHANTOM_SEED = 0  # the phantoms are one fixed data set, whatever the seed of the training


class ImageSource(Protocol):
    """Images in a stable order.

    Attributes:
      root: where the images lie, for messages.
      names: what a person calls each image: its path below `root`, or its place among the records.
      labels: the class of each image; None if the set is unlabelled.
      groups: the patient or lesion that each image shows; None where that is unknown.
    """

    root: str
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    groups: tuple[str, ...] | None

    def __len__(self) -> int:
        """The number of images."""

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """Decodes one image, resized and cropped: uint8, (image_size, image_size, channels). Thread-safe.

        Raises:
          ImageError: its bytes are not a usable image.
          OSError: its bytes cannot be had.
        """

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """What each image is made from: equal ids promise equal pixels, wherever the files lie.

        Args:
          digest_files: from files to digests of their content.
        """


def open_source(data: "DataConfig") -> ImageSource:
    """Opens the source that the config names.

    Raises:
      UserError: it is missing, empty, contradictory, or cannot be read.
    """
    paths = {field: os.path.expanduser(getattr(data, field)) for field in ("path", "labels_csv")}
    data = dataclasses.replace(data, **paths)
    openers = {"folder": _open_folder, "csv": _open_csv, "tfds": _open_tfds, "phantom": _open_phantoms}
    return openers[data.source](data)


def _select(number: int, labels: Sequence[str] | None, label: str, place: str) -> Sequence[int]:
    """The indices of the images of class `label`, or of all if that is empty."""
    if not label:
        return range(number)
    if labels is None:
        raise UserError(
            f"data.class_filter={label!r}, but the images of {place} have no labels: leave it empty, sort them "
            "into a folder per class, or use data.source=csv"
        )
    if label not in labels:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(labels).items()))
        raise UserError(f"data.class_filter={label!r} is not a label of {place}; there are: {counts}")
    return [index for index, name in enumerate(labels) if name == label]


# Files.


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files below one folder."""

    root: str
    names: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        data = Path(self.root, self.names[index]).read_bytes()
        return resize_crop(decode_image(data, channels=channels, min_side=image_size), image_size)

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        return digest_files([Path(self.root, name) for name in self.names])


def _file_source(
    root: str, names: Sequence[str], labels: Sequence[str] | None, label: str, groups: Sequence[str] | None = None
) -> FileSource:
    kept = _select(len(names), labels, label, root)
    columns = (column and tuple(column[i] for i in kept) for column in (names, labels, groups))
    return FileSource(root, *columns)


def _open_folder(data: "DataConfig") -> FileSource:
    """A flat folder of images, or a subfolder for each class, as torchvision's ImageFolder has it."""
    names = list_images(data.path)
    flat = [name for name in names if "/" not in name]
    if flat and len(flat) < len(names):
        raise UserError(
            f"data.path={data.path} holds images ({abbreviate(flat)}) beside folders of images, so their classes "
            "are unclear: move the loose images into a class folder, or elsewhere"
        )
    labels = None if flat else [name.split("/")[0] for name in names]
    return _file_source(data.path, names, labels, data.class_filter)


def list_images(folder: str, field: str = "data.path") -> list[str]:
    """Lists the image files anywhere below a folder, by extension, as sorted relative paths; hidden ones aside.

    Args:
      folder: where to look.
      field: what to call the folder's setting in messages.

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

    def column(field: str, *, needs_header: bool) -> list[str]:
        table = read_labels(
            data.labels_csv,
            image_column=data.image_column,
            label_column=getattr(data, field),
            field=field,
            needs_header=needs_header,
        )
        return match_labels(names, table, folder=data.path, table_path=data.labels_csv)

    # Without a header the second column holds the labels, whatever is asked for.
    groups = column("group_column", needs_header=True) if data.group_column else None
    labels = column("label_column", needs_header=False)
    return _file_source(data.path, names, labels, data.class_filter, groups)


# TensorFlow Datasets, without TensorFlow.


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Records of a prepared TFDS data set."""

    root: str
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    groups: None
    records: Sequence[dict[str, Any]]
    indices: tuple[int, ...]  # of the images, among the records
    feature: str  # the one that holds the image
    shards: tuple[Path, ...]
    split: str

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        try:
            image = self.records[self.indices[index]][self.feature]
        except (RuntimeError, ValueError) as error:
            raise ImageError("damaged record") from error
        if isinstance(image, bytes):
            image = decode_image(image, channels=channels, min_side=image_size)
        return resize_crop(convert_channels(np.asarray(image), channels), image_size)

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        shards = hashlib.blake2b(" ".join(digest_files(self.shards)).encode(), digest_size=16).hexdigest()
        return [f"{shards} {self.split} {self.feature} {index}" for index in self.indices]


def _open_tfds(data: "DataConfig") -> TfdsSource:
    try:
        import tensorflow_datasets as tfds  # slow, and needed here alone
    except ImportError as error:
        raise UserError("data.source=tfds needs two packages: pip install tensorflow-datasets array-record") from error

    name = data.tfds_name
    place = f"data.tfds_name={name}"
    try:
        builder = tfds.builder(name, data_dir=data.path or None)
    except ValueError as error:  # DatasetNotFoundError among them
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
        infos = Path(data.path).glob("*/**/dataset_info.json") if data.path else ()
        prepared = sorted({str(info.parent.parent.relative_to(data.path)) for info in infos})
        raise UserError(
            f"{place} is not a data set of TFDS"
            + (f", nor one in data.path={data.path}: it has {abbreviate(prepared) or 'none'}" if data.path else "")
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        ) from error
    if not builder.is_prepared() or builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        state = f"prepared as {builder.info.file_format.value}" if builder.is_prepared() else "not prepared"
        directory = f", data_dir={data.path!r}" if data.path else ""
        raise UserError(
            f"{place} is {state} in {builder.data_dir}; prepare it as array_record (this may download it): "
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{directory})'
            ".download_and_prepare(file_format='array_record')\""
        )

    features = builder.info.features
    image = next((key for key, feature in features.items() if _holds_image(tfds, feature)), None)
    if image is None:
        raise UserError(f"{place} has no image; its features are {', '.join(features)}")
    still_encoded = isinstance(features[image], tfds.features.Image)
    try:
        shards = builder.info.splits[data.split].filepaths
        records = builder.as_data_source(
            data.split, decoders={image: tfds.decode.SkipDecoding()} if still_encoded else None
        )
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
    indices = _select(len(records), labels, data.class_filter, name)
    return TfdsSource(
        root=str(builder.data_dir),
        names=tuple(f"{data.split}[{index}]" for index in indices),
        labels=labels and tuple(labels[index] for index in indices),
        groups=None,
        records=records,
        indices=tuple(indices),
        feature=image,
        shards=tuple(Path(shard) for shard in shards),
        split=data.split,
    )


def _holds_image(tfds: Any, feature: Any) -> bool:
    if isinstance(feature, tfds.features.Image):
        return True
    return type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8 and feature.shape[2:] in [(1,), (3,)]


def _tfds_labels(tfds: Any, features: Any, records: Sequence[dict[str, Any]]) -> list[str] | None:
    """Classes by the first ClassLabel feature, or else by a text called "label"."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.ClassLabel):
            numbers = [int(records[index][key]) for index in range(len(records))]
            return [feature.int2str(number) if number >= 0 else "unknown" for number in numbers]
    if "label" in features and isinstance(features["label"], tfds.features.Text):
        return [records[index]["label"].decode() for index in range(len(records))]
    return None


# Phantoms.


@dataclasses.dataclass(frozen=True)
class PhantomSource:
    """Phantoms of the fixed data set `PHANTOM_SEED`."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    indices: tuple[int, ...]
    groups: None = None
    root: str = "the phantoms"

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        image = phantom.phantom_image(self.indices[index], seed=PHANTOM_SEED, image_size=image_size)
        return convert_channels(image, channels)

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        return [f"phantom {phantom.VERSION} {PHANTOM_SEED} {index}" for index in self.indices]


def _open_phantoms(data: "DataConfig") -> PhantomSource:
    labels = [phantom.phantom_label(index, seed=PHANTOM_SEED) for index in range(data.num_phantoms)]
    indices = tuple(_select(data.num_phantoms, labels, data.class_filter, PhantomSource.root))
    names = tuple(f"phantom_{index:05d}" for index in indices)
    return PhantomSource(names, tuple(labels[index] for index in indices), indices)
