"""Decoded images on disk: each image is decoded once, then read from a uint8 memory map.

A cache is two files, named by what the pixels depend on: the content of the image files, in order, the size, the
channels, the recipe of the source, and the versions of the code that makes pixels. So a changed, added or renamed file
never meets a stale cache, and a folder that moved finds its old one. Nothing else refers to a cache: delete any at any
time.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs

from medgan_jax import image_files
from medgan_jax.data.classes import composed
from medgan_jax.data.sources import FileSource, ImageSource, inspect_file
from medgan_jax.errors import UserError, abbreviate, reason_of
from medgan_jax.files import local_path, replace_file
from medgan_jax.progress import progress_bar

_FORMAT = 1  # of the cache's files
_MEMO_FORMAT = 5
_RACY_NS = 2_000_000_000  # a file this young can change again and keep its time stamps
_UNREADABLE = "unreadable"
_ABANDONED_S = 24 * 3600  # a temporary file that nobody has written to for so long
_CHECKED_SIZE = 64  # px, at which an image is decoded to see whether it can be

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class CachedImages:
    """A data set ready for training.

    Attributes:
      images: uint8, (number, image_size, image_size, channels), a read-only memory map.
      names: what a person calls each image.
      labels: the class of each image; None if the set is unlabelled.
      digest: identifies pixels, order and labels, wherever the files lie.
      groups: the patient or lesion that each image shows; None where that is unknown.
      numbers: as those of `ImageSource`.
    """

    images: np.memmap
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    digest: str
    groups: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None


def load_cached(
    source: ImageSource,
    *,
    image_size: int,
    channels: int,
    cache_dir: str | os.PathLike = "",
    on_bad_image: str = "refuse",
    progress: bool = True,
) -> CachedImages:
    """Decodes a source, or finds it decoded in `cache_dir`, by default `default_cache_dir()`.

    Memory does not grow with the images, and any number of processes may do this at once. `on_bad_image` says what to
    do about images that cannot be read: "refuse", or "skip" and log them.

    Raises:
      UserError: images cannot be read, and are not to be skipped or are all there is; or the cache cannot be
        written.
    """
    ids = content_ids(source, cache_dir=cache_dir, progress=progress)
    recipe = [_FORMAT, image_files.VERSION, image_size, channels, *source.recipe()]
    with _folder(cache_dir) as folder:
        path = folder / f"{_digest([*recipe, ids])}.uint8"
        bad = _read_index(path, len(source), image_size, channels)
        if bad is None or (bad and on_bad_image == "refuse"):
            bad = _write(path, source, image_size, channels, on_bad_image, progress)

    if bad:
        logging.getLogger(__name__).warning("%s; they are left out", _describe(bad, source))
    kept = [index for index in range(len(source)) if index not in bad]
    readable = source.select(kept)
    return CachedImages(
        images=np.memmap(path, np.uint8, "r", shape=(len(kept), image_size, image_size, channels)),
        names=readable.names,
        labels=readable.labels and tuple(map(composed, readable.labels)),
        groups=readable.groups,
        numbers=readable.numbers,
        digest=_digest([*recipe, [ids[index] for index in kept], readable.labels]),
    )


def readable_images(
    source: ImageSource, *, on_bad_image: str = "refuse", setting: str = "data.on_bad_image"
) -> ImageSource:
    """Decodes each image of a source once, and returns the source without those that cannot be read; keeps no pixels.

    Args:
      source: the images.
      on_bad_image: what to do about images that cannot be read: "refuse", or "skip" and log them.
      setting: for messages: what `on_bad_image` is called.

    Raises:
      UserError: images cannot be read, and are not to be skipped or are all there is.
    """
    decoded = _decode(source, _CHECKED_SIZE, 3, progress=True)
    bad = {index: image for index, image in enumerate(decoded) if isinstance(image, str)}
    _check_bad(bad, source, on_bad_image, setting)
    if bad:
        logging.getLogger(__name__).warning("%s; they are left out", _describe(bad, source))
    return source.select([index for index in range(len(source)) if index not in bad])


def content_ids(source: ImageSource, *, cache_dir: str | os.PathLike = "", progress: bool = True) -> list[str]:
    """`ImageSource.content_ids`, without reading files again that have not changed since the last time.

    Files that cannot be read are told apart by their names.

    Raises:
      UserError: there is no folder for the cache, and none can be made.
    """
    with _folder(cache_dir) as folder:
        memo_path = _memo_path(folder, source)
        ids = source.content_ids(
            lambda paths: [digest for digest, _ in _examine_files(paths, memo_path=memo_path, progress=progress)]
        )
    return [
        f"{_UNREADABLE} {name}" if id.startswith(_UNREADABLE) else id
        for id, name in zip(ids, source.names, strict=True)
    ]


def inspect_files(
    source: FileSource, *, cache_dir: str | os.PathLike = "", progress: bool = True
) -> list[image_files.ImageInfo | None]:
    """What the header of each image file says; None where it cannot be read, of which decoding will say more.

    Files that have not changed since the last time are not read again.

    Raises:
      UserError: there is no folder for the cache, and none can be made.
    """
    with _folder(cache_dir) as folder:
        paths = [source.path(index) for index in range(len(source))]
        examined = _examine_files(paths, memo_path=_memo_path(folder, source), progress=progress)
    return [image_files.ImageInfo(*info) if info else None for _, info in examined]


def _memo_path(folder: Path, source: ImageSource) -> Path:
    return folder / f"files-{_digest([_MEMO_FORMAT, os.path.abspath(source.root)])}.json"


def default_cache_dir() -> Path:
    """The folder of this package in the user's cache folder; on Linux that is $XDG_CACHE_HOME or else ~/.cache.

    Raises:
      UserError: the user has no home folder.
    """
    try:
        return platformdirs.user_cache_path("medgan_jax", appauthor=False)
    except RuntimeError as error:
        raise UserError(
            "data.cache_dir: there is no home folder to keep decoded images in; set data.cache_dir=FOLDER, or the "
            "variable HOME"
        ) from error


@contextlib.contextmanager
def _folder(cache_dir: str | os.PathLike) -> Iterator[Path]:
    """The folder of caches, made if need be; its errors become a UserError."""
    folder = local_path("data.cache_dir", cache_dir or default_cache_dir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:  # reading images raises none: what remains is the cache
        raise UserError(
            f"data.cache_dir={folder}: cannot write the cache of decoded images ({error.strerror or error}); make "
            "room there, or set data.cache_dir=FOLDER"
        ) from error


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _describe(bad: dict[int, str], source: ImageSource) -> str:
    names = defaultdict(list)
    for index, reason in bad.items():
        names[reason].append(source.names[index])
    listing = [f"{abbreviate(those, limit=8)} ({reason})" for reason, those in names.items()]
    which = f", which python -m medgan_jax.data.dicom {source.root} NAME finds" if source.files else ""
    return f"{len(bad)} of {len(source)} images in {source.root} cannot be read: {abbreviate(listing, limit=20)}{which}"


def _read_index(path: Path, number: int, image_size: int, channels: int) -> dict[int, str] | None:
    """The images that a cache leaves out, and why; None if there is no such cache, or not a whole one."""
    try:
        index = json.loads(path.with_suffix(".json").read_text())
        bad = {int(key): str(reason) for key, reason in index["bad"].items()}
        whole = path.stat().st_size == (number - len(bad)) * image_size * image_size * channels
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return bad if whole else None


def _write(
    path: Path, source: ImageSource, image_size: int, channels: int, on_bad_image: str, progress: bool
) -> dict[int, str]:
    """Decodes all images into a cache; returns those left out, and why."""
    for abandoned in path.parent.glob("*.tmp"):  # of a process that was killed
        with contextlib.suppress(OSError):  # another process may be faster
            if time.time() - abandoned.stat().st_mtime > _ABANDONED_S:
                abandoned.unlink()
    bad: dict[int, str] = {}
    temporary = path.with_name(f"{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for index, image in enumerate(_decode(source, image_size, channels, progress)):
                if isinstance(image, str):
                    bad[index] = image
                else:
                    file.write(image.tobytes())
        _check_bad(bad, source, on_bad_image, "data.on_bad_image")
        replace_file(path.with_suffix(".json"), json.dumps({"bad": bad}).encode())
        os.replace(temporary, path)  # last: a cache without pixels is none
    finally:
        temporary.unlink(missing_ok=True)
    return bad


def _check_bad(bad: dict[int, str], source: ImageSource, on_bad_image: str, setting: str) -> None:
    if len(bad) == len(source):
        raise UserError(f"{_describe(bad, source)}; mend them, or give other images")
    if bad and on_bad_image == "refuse":
        raise UserError(f"{_describe(bad, source)}; mend or remove them, or set {setting}=skip")


def _decode(source: ImageSource, image_size: int, channels: int, progress: bool) -> Iterator[np.ndarray | str]:
    """The images, uint8 (image_size, image_size, channels), in order; why not for those that cannot be read."""

    def decode(index: int) -> np.ndarray | str:
        try:
            return source.read(index, image_size, channels)
        except image_files.ImageError as error:
            return str(error)
        except OSError as error:
            return reason_of(error)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # whatever is wrong with an image is said elsewhere
        yield from _map_threaded(decode, range(len(source)), "decoding images", progress)


def _map_threaded(
    function: Callable[[_Item], _Result], items: Sequence[_Item], title: str, progress: bool
) -> Iterator[_Result]:
    """Maps in order, in threads (Pillow and blake2b release the GIL), a bounded number of items ahead."""
    workers = os.cpu_count() or 1
    pending: deque[Future[_Result]] = deque()
    with (
        progress_bar(len(items), desc=title, unit="image", disable=not progress) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
                bar.update(1)
        while pending:
            yield pending.popleft().result()
            bar.update(1)


def _examine_files(paths: Sequence[Path], *, memo_path: Path, progress: bool) -> list[tuple[str, Sequence[Any] | None]]:
    """Digests files by content, and reads their headers; those whose stat is as it was last time are not read again.

    As in git's index, a file that changed within the clock's grain is not remembered: it could change once more
    and look the same. A header that could not be read is tried again: a decoder may have been installed.
    """
    try:
        memo = dict(json.loads(memo_path.read_text()))
    except (OSError, ValueError, TypeError):
        memo = {}
    now = time.time_ns()
    stamps = {path: _stamp(path) for path in paths}
    keys = {path: _digest(str(path)) for path in paths}  # a path may name a patient
    known: dict[Path, tuple[str, Sequence[Any] | None]] = {}
    for path, stamp in stamps.items():
        before, *entry = memo.get(keys[path], [None])
        if stamp and before == stamp:
            known[path] = (entry[0], entry[1])

    def examine(path: Path) -> tuple[str, Sequence[Any] | None]:
        return _examine_file(path, known[path][0] if path in known else None)

    lacking = [path for path in stamps if path not in known or not known[path][1]]
    examined = known | dict(zip(lacking, _map_threaded(examine, lacking, "reading files", progress), strict=True))
    for path in lacking:
        stamp = stamps[path]
        if examined[path][0] != _UNREADABLE and stamp and now - max(stamp[1:3]) > _RACY_NS:
            memo[keys[path]] = [stamp, *examined[path]]
    if lacking:
        with contextlib.suppress(OSError):  # the memo only saves time
            replace_file(memo_path, json.dumps(memo).encode())
    return [examined[path] for path in paths]


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _examine_file(path: Path, digest: str | None) -> tuple[str, image_files.ImageInfo | None]:
    """Digest, unless it is known, and header of a file."""
    try:
        if digest is None:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        with contextlib.suppress(image_files.ImageError):  # of which decoding will say more
            return digest, inspect_file(path)
    except OSError:
        return _UNREADABLE, None
    return digest, None
