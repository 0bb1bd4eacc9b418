"""What lies in a folder of images, by the headers of its files: said in a line, or refused."""

import dataclasses
import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medgan_jax.data.cache import inspect_files
from medgan_jax.data.sources import FileSource, ImageSource
from medgan_jax.errors import UserError, abbreviate
from medgan_jax.image_files import ImageInfo

if TYPE_CHECKING:
    from medgan_jax.config import DataConfig

_BITS = (8, 10, 12, 14, 16)  # of detectors
_SHOWN = 8  # names in a message
_LARGE = 8  # an image is small among others whose sides are so many times as long


def survey(source: ImageSource, data: "DataConfig", *, image_size: int, progress: bool = True) -> ImageSource:
    """Looks at the headers of a source of files before any is decoded, and settles how they are to be read.

    A line says what there is; a warning names small images among large ones. The window of 16-bit samples is that which
    a tag of the file declares, or else one for all of the source, so that its images stay comparable. Other sources are
    returned as they are, once it is seen that no record is marked as synthetic.

    Args:
      source: the images.
      data: its "include", "allow_synthetic", "frames", "window" and "cache_dir".
      image_size: that the images will have.
      progress: whether to log and to show progress.

    Returns:
      The source, with its window, and an image for each frame if all are wanted.

    Raises:
      UserError: there are files of several frames, and data.frames is empty; or pictures of two values, as masks are,
        among others; or images marked as synthetic, and data.allow_synthetic is off.
    """
    if not isinstance(source, FileSource):
        if source.synthetic and not data.allow_synthetic:
            _refuse_synthetic(source, source.synthetic, "prepare the data set without them")
        return source
    infos = inspect_files(source, cache_dir=data.cache_dir, progress=progress)
    log = logging.getLogger(__name__)
    if progress:
        log.info("%s", _summary(source, infos))
    _refuse_masks(source, infos, data.include)
    if not data.allow_synthetic:
        marked = [bool(info and info.synthetic) for info in infos]
        _refuse_synthetic(source, marked, "leave them out with data.exclude=PATTERNS")
    bits, why = _bits(infos) if data.window == "auto" else (None, "")
    values, why_values = _values(infos) if data.window == "auto" else (None, "")
    if progress:
        for line in filter(None, (why, why_values)):
            log.info("%s", line)
        if small := _small(source, infos, image_size):
            log.warning("%s", small)
    return _with_frames(dataclasses.replace(source, bits=bits, values=values), infos, data.frames)


def _summary(source: FileSource, infos: Sequence[ImageInfo | None]) -> str:
    """One line: images, classes, sizes, kinds, and what else lies in the folder."""
    known = [info for info in infos if info]
    parts = [f"{len(source)} images in {source.root}"]
    if source.labels:
        classes = [f"{name} {count}" for name, count in sorted(Counter(source.labels).items())]
        parts.append(f"classes {abbreviate(classes, _SHOWN)}")
    if known:
        sizes = sorted({(info.width, info.height) for info in known}, key=lambda size: size[0] * size[1])
        ends = dict.fromkeys((sizes[0], sizes[-1]))
        parts.append(" to ".join(f"{width} x {height}" for width, height in ends) + " px")
        kinds = Counter(info.kind for info in known)
        parts.append(abbreviate([f"{kind} {count}" for kind, count in kinds.most_common()], _SHOWN))
    if len(known) < len(infos):
        parts.append(f"{len(infos) - len(known)} unreadable")
    if source.left_out:
        parts.append(f"left out: {source.left_out}")
    return "; ".join(parts)


def _refuse_masks(source: FileSource, infos: Sequence[ImageInfo | None], include: str) -> None:
    found = [name for name, info in zip(source.names, infos, strict=True) if info and info.two_values]
    if not found or include:
        return
    if len(found) == len(infos):
        logging.getLogger(__name__).warning(
            "all %d images in %s have just two values, as masks have; if they are masks, give the folder of images",
            len(found),
            source.root,
        )
        return
    raise UserError(
        f"{len(found)} of {len(infos)} images in {source.root} have just two values, as masks have: "
        f"{abbreviate(found)}; leave them out with data.exclude=PATTERNS, or, if they are to be trained on, say "
        "which images are: data.include='*' for all"
    )


def _refuse_synthetic(source: ImageSource, marked: Sequence[bool], remedy: str) -> None:
    if found := [name for name, is_marked in zip(source.names, marked, strict=True) if is_marked]:
        raise UserError(
            f"{len(found)} of {len(source)} images in {source.root} are marked as synthetic: {abbreviate(found)}; "
            f"{remedy}, or, if they are to count as reals, set data.allow_synthetic=True"
        )


def _with_frames(source: FileSource, infos: Sequence[ImageInfo | None], frames: str) -> FileSource:
    """The source with each frame as an image of its file's name, label and group, where "all" are wanted."""
    numbers = [info.frames if info else 1 for info in infos]
    several = [f"{name} ({number})" for name, number in zip(source.names, numbers, strict=True) if number > 1]
    if not several or frames == "first":
        return source
    if not frames:
        raise UserError(
            f"{len(several)} of {len(numbers)} images in {source.root} have several pages or frames: "
            f"{abbreviate(several)}; set data.frames=first, or all, which makes each an image"
        )
    source = source.select([index for index, number in enumerate(numbers) for _ in range(number)])
    return dataclasses.replace(source, numbers=tuple(frame for number in numbers for frame in range(number)))


def _bits(infos: Sequence[ImageInfo | None]) -> tuple[tuple[int, ...] | None, str]:
    """How many of 16 bits the samples of each file use, None where all, and a line that says why."""
    # A tag is wrong where a value is above what it declares.
    declared = [info.declared_bits if info and info.brightest < 2**info.declared_bits else 0 for info in infos]
    others = [info for info, bits in zip(infos, declared, strict=True) if info and info.brightest and not bits]
    reasons = [
        f"a tag of {number} images of 16 bits declares {bits} bits, so 0 to {2**bits - 1} become black to white in them"
        for bits, number in sorted(Counter(filter(None, declared)).items())
    ]
    shared = 16
    if others:
        brightest = max(info.brightest for info in others)
        shared = next(bits for bits in _BITS if brightest < 2**bits)
        wrong = max(info.declared_bits for info in others)
        reasons.append(
            f"the largest value of {len(others)} {'other ' if reasons else ''}images of 16 bits is {brightest}"
            + (f", though a tag declares {wrong} bits" if wrong else "")
            + f", so 0 to {2**shared - 1} ({shared} bits) become black to white"
        )
    of_files = tuple(bits or shared for bits in declared)
    line = f"data.window=auto: {'; '.join(reasons)}" if reasons else ""
    return (None if set(of_files) == {16} else of_files), line


def _values(infos: Sequence[ImageInfo | None]) -> tuple[tuple[float, float] | None, str]:
    """The range of values of DICOM files that do not say what is to be shown, and a line about it."""
    ranges = [info.values for info in infos if info and info.values]
    if not ranges:
        return None, ""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return (low, high), (
        f"data.window=auto: {len(ranges)} DICOM files have no window; their values, {low:g} to {high:g}, become black "
        "to white"
    )


def _small(source: FileSource, infos: Sequence[ImageInfo | None], image_size: int) -> str:
    """A line about images that are much smaller than the others, or than they will be."""
    known = [(name, info) for name, info in zip(source.names, infos, strict=True) if info]
    if not known:
        return ""
    median = statistics.median(min(info.height, info.width) for _, info in known)
    limit = max(image_size / 2, median / _LARGE)
    small = [f"{name} ({info.width} x {info.height} px)" for name, info in known if min(info[:2]) < limit]
    if not small:
        return ""
    return (
        f"{len(small)} of {len(known)} images in {source.root} are small beside image_size={image_size} or the others, "
        f"whose median side is {median:g} px: {abbreviate(small)}; data.exclude=PATTERNS leaves images out"
    )
