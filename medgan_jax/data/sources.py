"""Where images come from: a folder, a folder with a table of labels, a TFDS data set, or phantoms.

Each is an `ImageSource`, opened by `open_source`. Opening lists and labels the images; no pixel is read.
"""

import abc
import contextlib
import dataclasses
import difflib
import hashlib
import logging
import mimetypes
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from medgan_jax.data import dicom, phantom
from medgan_jax.data.classes import composed
from medgan_jax.data.labels import Row, fitting, match_labels, read_labels, spellings
from medgan_jax.data.listing import (
    DICOM_SUFFIXES,
    choose_split,
    describe_counts,
    find_images,
    list_images,
    refuse_annotations,
)
from medgan_jax.errors import UserError, abbreviate
from medgan_jax.files import expanded
from medgan_jax.image_files import (
    DICOM,
    HEAD,
    ImageError,
    ImageInfo,
    decode_image,
    inspect_image,
    is_marked_synthetic,
    recognise,
)
from medgan_jax.images import convert_channels, resize

if TYPE_CHECKING:
    from medgan_jax.config import DataConfig

__all__ = ["FileSource", "ImageSource", "PhantomSource", "TfdsSource", "file_source", "list_images", "open_source"]

Window = str | tuple[float, float]  # "auto", "full", or the values that become black and white
PHANTOM_SEED = 0  # the phantoms are one fixed data set, whatever the seed of the training


@dataclasses.dataclass(frozen=True)
class ImageSource(abc.ABC):
    """Images in a stable order.

    Attributes:
      root: where the images lie, for messages.
      names: what a person calls each image: its path below `root`, or its place among the records.
      labels: the class of each image; None if the set is unlabelled.
      groups: the patient or lesion that each image shows; None where that is unknown.
      numbers: of each image among the records or phantoms; of files, the frame, or None where all are the first.
      files: of DICOM files, the paths below `root`, whose digests are the names; None elsewhere.
      bits: how many of 16 bits the samples of each file use, see `decode_image`; None where all are used.
      window: which samples become black and white, as data.window says.
      fit: how images become square, as data.fit says.
      synthetic: which records are marked as synthetic; of files the survey finds out.
    """

    root: str
    names: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None
    files: tuple[str, ...] | None = None
    bits: tuple[int, ...] | None = None
    window: Window = "auto"
    fit: str = "crop"
    synthetic: tuple[bool, ...] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def select(self, indices: Sequence[int]) -> Self:
        """Some of the images, in the order of `indices`."""
        names = ("names", "labels", "groups", "numbers", "files", "bits", "synthetic")
        columns = {name: getattr(self, name) for name in names}
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

    def recipe(self) -> list[str]:
        """What changes pixels beside content, size and channels; empty where all is as it was in older caches."""
        recipe = [] if self.fit == "crop" else [f"fit={self.fit}"]
        return recipe if isinstance(self.window, str) else [*recipe, f"window={self.window}"]

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
    return of_class(openers[data.source](data), data.class_filter)


def of_class(source: ImageSource, label: str) -> ImageSource:
    """The images of one class; all where `label` is empty.

    Raises:
      UserError: there are none of it.
    """
    if not label:
        return source
    if source.labels is None:
        raise UserError(
            f"data.class_filter={label!r}, but the images of {source.root} have no labels: leave it empty, sort them "
            "into a folder per class, or use data.source=csv"
        )
    names = [composed(name) for name in source.labels]
    if composed(label) not in names:
        counts = [f"{name} ({count})" for name, count in sorted(Counter(names).items())]
        raise UserError(
            f"data.class_filter={label!r} is not a label of {source.root}; there are: {abbreviate(counts, 8)}"
        )
    return source.select([index for index, name in enumerate(names) if name == composed(label)])


@dataclasses.dataclass(frozen=True)
class FileSource(ImageSource):
    """Image files below the folder `root`.

    Attributes:
      values: the range of values of DICOM files that do not say what is to be shown, see `decode_dicom`.
      left_out: what else lies in the folder, for messages.
    """

    values: tuple[float, float] | None = None
    left_out: str = ""

    def path(self, index: int) -> Path:
        """The file of an image."""
        return Path(self.root, (self.files or self.names)[index])

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        path = self.path(index)
        data = path.read_bytes()
        if data and _named_dicom(path.name) and not recognise(data[:HEAD]):
            raise ImageError("not a DICOM image")
        image = decode_file(
            data,
            channels=channels,
            min_side=image_size,
            window=self.window,
            bits=self.bits[index] if self.bits else 16,
            values=self.values,
            frame=self.numbers[index] if self.numbers else 0,
        )
        return resize(image, image_size, fit=self.fit)

    def recipe(self) -> list[str]:
        """See `ImageSource`."""
        recipe = super().recipe()
        if self.files:
            recipe += [f"dicom {dicom.VERSION}", f"window={self.window}", f"values={self.values}"]
        bits = sorted(set(self.bits or ()))
        return [*recipe, f"bits={bits[0] if len(bits) == 1 else self.bits}"] if bits else recipe

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        digests = digest_files([self.path(index) for index in range(len(self))])
        if not self.numbers:
            return digests
        return [f"{digest} {frame}" for digest, frame in zip(digests, self.numbers, strict=True)]


def decode_file(
    data: bytes,
    *,
    channels: int,
    min_side: int | None,
    window: Window,
    bits: int,
    values: tuple[float, float] | None,
    frame: int,
) -> np.ndarray:
    """Decodes an image file of any kind: uint8, (height, width, channels).

    Args:
      data: the file.
      channels: 1 (grey) or 3 (RGB).
      min_side: the size that it will be resized to, see `decode_image`.
      window: as data.window says: of DICOM files "auto" is their own.
      bits: how many of 16 bits its samples use.
      values: of DICOM files, what to show where they do not say.
      frame: which one of a file of several, from 0.

    Raises:
      ImageError: its bytes are not a usable image.
    """
    if recognise(data[:HEAD]) == DICOM:
        return dicom.decode_dicom(data, channels=channels, window=window, otherwise=values, frame=frame)
    return decode_image(
        data, channels=channels, min_side=min_side, window=bits if isinstance(window, str) else window, frame=frame
    )


def inspect_file(path: str | os.PathLike) -> ImageInfo:
    """Reads the header of an image file of any kind.

    Raises:
      ImageError: it is not an image.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
        if recognise(head) == DICOM:
            return dicom.inspect_dicom(head + file.read())
    return inspect_image(path)


def _open_folder(data: "DataConfig") -> FileSource:
    """A flat folder of images, or a subfolder for each class, as torchvision's ImageFolder has it.

    Of DICOM files, folders may also be called as their patients.
    """
    source, left_out = _find(data)
    source, inside, of_other_splits = _of_split(source, data.split)
    folders = [name.partition("/")[0] if "/" in name else "" for name in inside]
    identities = _identities(source)
    if _are_patients(folders, identities):
        logging.getLogger(__name__).warning(
            "folders in %s are called as patients or studies, so they are no classes", data.path
        )
        folders = [""] * len(source)
    flat = [name for name, folder in zip(source.names, folders, strict=True) if not folder]
    if flat and len(flat) < len(source):
        raise UserError(
            f"data.path={data.path} holds images ({abbreviate(flat)}) beside folders of images, so their classes "
            "are unclear: move the loose images into a class folder, or elsewhere"
        )
    labels = None if flat else tuple(folders)
    left_out.update(of_other_splits)
    return _with_settings(source, data, labels, _patients(source, identities), left_out)


def _open_csv(data: "DataConfig") -> FileSource:
    """A folder of images, and a table that labels each of them."""
    source, left_out = _find(data)
    identities = _identities(source)
    columns = {field: getattr(data, field) for field in ("image_column", "label_column", "group_column")}
    table = read_labels(data.labels_csv, quote=not source.files, **columns)
    if source.files:
        table = _by_public_name(table, source, identities, data.labels_csv)
    rows = match_labels(source.names, table, folder=data.path, table_path=data.labels_csv, on_missing=data.on_missing)
    groups = _patients(source, identities)
    if data.group_column:
        public = dicom.public_name if source.files else str
        groups = tuple(public(rows[name].group) if name in rows and rows[name].group else name for name in source.names)
        if alone := [name for name, row in rows.items() if not row.group]:
            logging.getLogger(__name__).warning(
                "%s: %d of %d images have no %s, and each is a group of its own: %s",
                data.labels_csv, len(alone), len(rows), data.group_column, abbreviate(alone),
            )  # fmt: skip
    labels = tuple(rows[name].label if name in rows else "" for name in source.names)
    source = dataclasses.replace(source, labels=labels, groups=groups)
    source = source.select([index for index, name in enumerate(source.names) if name in rows])
    source, _, of_other_splits = _of_split(source, data.split)
    left_out.update(of_other_splits)
    return _with_settings(source, data, source.labels, source.groups, left_out)


def _find(data: "DataConfig") -> tuple[FileSource, Counter[str]]:
    """The images that `find_images` gives, where none is a mask of another or all were asked for by pattern."""
    found, left_out = find_images(data.path, include=data.include, exclude=data.exclude)
    source = file_source(data.path, found)
    if not data.include:
        refuse_annotations(found, folder=data.path, shown=dicom.public_name if source.files else str)
    if source.files:  # what looks like an extension may be a name
        for kind in [kind for kind in left_out if kind.startswith(".") and kind not in mimetypes.types_map]:
            left_out["other"] += left_out.pop(kind)
    return source, left_out


def _of_split(source: FileSource, split: str) -> tuple[FileSource, list[str], Counter[str]]:
    """The images of a split, and what `choose_split` says of them."""
    found = source.files or source.names
    chosen, inside, of_other_splits = choose_split(found, split, folder=source.root)
    places = {path: index for index, path in enumerate(found)}
    return source.select([places[path] for path in chosen]), inside, of_other_splits


def file_source(folder: str, names: Sequence[str]) -> FileSource:
    """The files `names` below a folder; where there are DICOM files among them, they are called by digests."""
    if _holds_dicom(folder, names):
        return FileSource(folder, tuple(map(dicom.public_name, names)), files=tuple(names))
    return FileSource(folder, tuple(names))


def _holds_dicom(folder: str, names: Sequence[str]) -> bool:
    """Whether there are DICOM files among them, by the name or the first bytes of any, whatever its extension."""
    return any(map(_named_dicom, names)) or any(_is_dicom(Path(folder, name)) for name in names)


def _named_dicom(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in DICOM_SUFFIXES


def _is_dicom(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return recognise(file.read(HEAD)) == DICOM
    return False


def _identities(source: FileSource) -> list[dicom.Identity]:
    """Whose images DICOM files hold; empty for other files."""
    return [dicom.read_identity(source.path(index)) for index in range(len(source))] if source.files else []


def _patients(source: FileSource, identities: Sequence[dicom.Identity]) -> tuple[str, ...] | None:
    """A digest for the patient of each DICOM file, or where there is no Patient ID, for the file."""
    named = zip(source.names, identities, strict=True) if identities else ()
    return tuple(dicom.public_name(who.patient) if who.patient else name for name, who in named) or None


def _are_patients(folders: Sequence[str], identities: Sequence[dicom.Identity]) -> bool:
    """Whether a folder names the patient or the study of a DICOM file in it."""
    pairs = {(folder, who.words, who.identifiers): who for folder, who in zip(folders, identities, strict=False)}
    return any(who.is_named_by(folder) for (folder, *_), who in pairs.items())


def _by_public_name(
    table: dict[str, Row], source: FileSource, identities: Sequence[dicom.Identity], place: str
) -> dict[str, Row]:
    """A table of DICOM files, by SOP Instance UID or file name, as one of their public names.

    Rows that fit no file, or several, get names that fit none.
    """
    files = source.files or ()
    public = dict(zip(files, source.names, strict=True))
    by_instance: dict[str, set[str]] = defaultdict(set)
    for name, identity in zip(source.names, identities, strict=True):
        by_instance[identity.instance].add(name)
    spelled = spellings(files)
    renamed: dict[str, Row] = {}
    for number, (image, row) in enumerate(table.items(), 1):
        names = by_instance.get(image) or {public[file] for file in fitting(image, spelled)}
        name = next(iter(names)) if len(names) == 1 else f"image {number} of the table"
        if renamed.setdefault(name, row) != row:
            raise UserError(f"{place} says two things about the file {name}; keep one")
    return renamed


def _with_settings(
    source: FileSource,
    data: "DataConfig",
    labels: tuple[str, ...] | None,
    groups: tuple[str, ...] | None,
    left_out: Counter[str],
) -> FileSource:
    return dataclasses.replace(
        source,
        labels=labels and tuple(map(composed, labels)),
        groups=groups,
        window=data.value_range() or data.window,
        fit=data.fit,
        left_out=describe_counts(left_out),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(ImageSource):
    """Records of a prepared TFDS data set, read without TensorFlow."""

    numbers: tuple[int, ...]
    records: Sequence[dict[str, Any]]  # of the whole split
    feature: str  # the one that holds the image
    shards: tuple[Path, ...]
    split: str
    frame: int | None  # of records of several; None refuses them

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        try:
            image = self.records[self.numbers[index]][self.feature]
        except (RuntimeError, ValueError) as error:
            raise ImageError("damaged record") from error
        if isinstance(image, bytes):
            window = {"full": 16, "auto": None}[self.window] if isinstance(self.window, str) else self.window
            image = decode_image(image, channels=channels, min_side=image_size, window=window, frame=self.frame)
        return resize(convert_channels(np.asarray(image), channels), image_size, fit=self.fit)

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
        labels, synthetic = _tfds_columns(tfds, features, records, image)
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
        frame=0 if data.frames == "first" else None,
        window=data.value_range() or data.window,
        fit=data.fit,
        synthetic=synthetic,
    )


def _holds_image(tfds: Any, feature: Any) -> bool:
    if isinstance(feature, tfds.features.Image):
        return True
    return type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8 and feature.shape[2:] in [(1,), (3,)]


def _tfds_columns(
    tfds: Any, features: Any, records: Sequence[dict[str, Any]], image: str
) -> tuple[tuple[str, ...] | None, tuple[bool, ...]]:
    """Classes, by the first ClassLabel feature or else by a text called "label", and which images are marked.

    In one pass: to read the records takes most of the time.
    """
    numbered = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    spoken = [key for key in features if key == "label" and isinstance(features[key], tfds.features.Text)]
    keys = [*numbered, *spoken][:1]

    def label_of(value: Any, key: str) -> str:
        if key in spoken:
            return value.decode()
        return features[key].int2str(int(value)) if value >= 0 else "unknown"

    labels, synthetic = [], []
    for index in range(len(records)):
        record = records[index]
        labels += [label_of(record[key], key) for key in keys]
        synthetic.append(isinstance(record[image], bytes) and is_marked_synthetic(record[image]))
    return tuple(labels) or None, tuple(synthetic)


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
