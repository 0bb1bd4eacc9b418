"""The image files of a folder: which there are, which of them are masks by their names, and what else lies there."""

import contextlib
import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from medgan_jax.errors import UserError, abbreviate, reason_of
from medgan_jax.files import LITTER
from medgan_jax.images import DICOM, HEAD, IMAGE, recognise

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .bmp .tif .tiff .webp .gif .pbm .pgm .ppm .pnm .jp2 .j2k .jpx"
DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = frozenset((*_SUFFIXES.split(" "), *DICOM_SUFFIXES))
_HIDDEN = "hidden"
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
_ANNOTATIONS = "ground[ _-]?truths?|gt|masks|segmentations?|super[ _-]?pixels?|annotations|labels"
_PARTS = "(?:(?:left|right|lung|manual|fov)_?)"
_ANNOTATION = (
    rf"{_ANNOTATIONS}|{_PARTS}?masks?|seg|segm|segmented|annotation|annotated|label|manual|contours?|overlays?"
)
_OF_IMAGE = re.compile(  # of a name without extension: image 7 has a 7_mask, a 7_segmentation_2, or a mask_7
    rf"(.+?)[ _.-]+(?:{_ANNOTATION}|attribute_[a-z_]+)[ _.-]?\d*|(?:{_ANNOTATION})[ _.-]+(.+)", re.IGNORECASE
)
_FOLDER = re.compile(rf"(?:.*[ _.-])?(?:{_ANNOTATIONS})", re.IGNORECASE)
_FOLDER_OF_SAME_NAMES = re.compile(_ANNOTATION, re.IGNORECASE)


def list_images(folder: str, field: str = "data.path") -> list[str]:
    """The names that `find_images` gives, without patterns."""
    return find_images(folder, field)[0]


def find_images(
    folder: str, field: str = "data.path", *, include: str = "", exclude: str = ""
) -> tuple[list[str], Counter[str]]:
    """Lists the image files anywhere below a folder: those with an extension of images, and others with such content.

    Args:
      folder: the folder.
      field: the setting that it comes from, for messages.
      include: patterns of `fnmatch` separated by commas, of which a path must match one; "" is any path.
      exclude: the same, of which it must match none.

    Returns:
      Their sorted paths below the folder, and how many files of which kinds are left out; of hidden folders, the folder
      is counted, and litter of desktop systems is not.

    Raises:
      UserError: the folder is missing, empty, not a folder, or cannot be read.
    """
    if not folder:
        raise UserError(f"{field} is empty: give the folder of images")
    names, left_out = [], Counter[str]()
    wanted, unwanted = _patterns(include), _patterns(exclude)
    left_out.update({f"by data.exclude={pattern}": 0 for pattern in unwanted})
    try:
        for path in _walk(folder, frozenset()):
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            if other := _other_kind(path):
                left_out[other] += 1
            elif pattern := next((each for each in unwanted if fnmatch.fnmatchcase(name, each)), ""):
                left_out[f"by data.exclude={pattern}"] += 1
            elif wanted and not any(fnmatch.fnmatchcase(name, each) for each in wanted):
                left_out[f"by data.include={include}"] += 1
            else:
                names.append(name)
    except OSError as error:
        raise UserError(f"{field}={folder}: {reason_of(error)} ({error.filename}); give a folder of images") from error
    if not names:
        found = f"there are only {describe_counts(left_out)}" if left_out.total() else "there are no files"
        raise UserError(f"{field}={folder} holds no images: {found}")
    return sorted(names), left_out


def describe_counts(counts: Counter[str]) -> str:
    """Kinds of files for a message, the commonest first: "12 .txt, 1 zip archive"."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def _walk(folder: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:  # a link to a folder above
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower() in LITTER or entry.name.startswith("._"):
                continue
            if not entry.name.startswith(".") and os.path.isdir(entry.path):
                yield from _walk(entry.path, ancestors | {identity})
            else:
                yield entry.path


def _other_kind(path: str) -> str:
    """What a file is that is no image by its name, nor an image or DICOM by its content; "" for images."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return _HIDDEN
    if suffix in IMAGE_SUFFIXES:
        return ""
    kind = ""
    if os.path.isfile(path):  # and not a pipe, which would keep us waiting
        with contextlib.suppress(OSError), open(path, "rb") as file:
            kind = recognise(file.read(HEAD))
    if kind == DICOM and name.upper() == "DICOMDIR":  # the table of contents of a medium
        return "DICOMDIR"
    return "" if kind in (IMAGE, DICOM) else kind or suffix or "without extension"


def refuse_annotations(names: Sequence[str], *, folder: str, shown: Callable[[str], str] = str) -> None:
    """Refuses masks, superpixels and other annotations that lie among images.

    They are known by their names: "x_mask" where there is an image "x" too, all of a folder such as "masks" beside
    others, and of a folder such as "mask" the files that are called as those of another folder.

    Args:
      names: paths of images below `folder`.
      folder: for messages.
      shown: what a message calls a file.

    Raises:
      UserError: there are any.
    """
    files = [(name, *name.rpartition("/")[::2]) for name in names]
    places: dict[str, set[str]] = {}  # where there are files of this name, in lower case, without extension
    for _, place, file in files:
        places.setdefault(os.path.splitext(file)[0].lower(), set()).add(place)
    all_places = set().union(*places.values())
    has_images = any(not _find_part(_FOLDER, place) for place in all_places)

    found: dict[str, str] = {}  # and a pattern that leaves it out
    for name, place, file in files:
        stem, suffix = os.path.splitext(file)
        match = _OF_IMAGE.fullmatch(stem)
        part = has_images and _find_part(_FOLDER, place)
        if not part and (same := _find_part(_FOLDER_OF_SAME_NAMES, place)):
            elsewhere = any(not _find_part(_FOLDER_OF_SAME_NAMES, other) for other in places[stem.lower()])
            part = same if elsewhere else ""
        if part:
            found[name] = f"{part}/*" if place.startswith(part) else f"*/{part}/*"
        elif match and (match[1] or match[2]).lower() in places:
            of = re.sub(r"\d+$", "*", stem[match.end(1) :]) if match[1] else stem[: match.start(2)]
            found[name] = f"*{of}{suffix}" if match[1] else f"*{of}*{suffix}"
    if found:
        patterns = ",".join(dict.fromkeys(found.values()))
        listing = abbreviate([shown(name) for name in found])
        raise UserError(
            f"data.path={folder}: {len(found)} of {len(names)} images are masks or annotations of others by their "
            f"names ({listing}); leave them out with data.exclude='{patterns}', or, if they are to be "
            "trained on, say which images are: data.include='*' for all"
        )


def _find_part(pattern: re.Pattern[str], place: str) -> str:
    """The first folder of a path that a pattern fits, or ""."""
    return next((part for part in place.split("/") if pattern.fullmatch(part)), "")


def choose_split(names: Sequence[str], split: str, *, folder: str) -> tuple[list[str], list[str], Counter[str]]:
    """The images of a split, where folders are called train, test, val, or such; all where there are no such folders.

    Args:
      names: paths of images below `folder`.
      split: train, test or val; several are joined by +.
      folder: for messages.

    Returns:
      The names chosen; the same as if the split were a folder of images of its own, so that the first folder is the
      class; and how many images of which splits are left out.

    Raises:
      UserError: there are no images of this split.
    """
    split_of, inside = {}, {}
    for name in names:
        parts = name.split("/")
        place = next((i for i, part in enumerate(parts[:-1]) if part.lower() in _SPLITS), None)
        if place is not None:
            split_of[name] = _SPLITS[parts[place].lower()]
            below = parts[place + 1 :]
            inside[name] = "/".join(below if len(below) > 1 else [*parts[:place][-1:], *below])
    asked = {_SPLITS.get(part.strip().lower(), part.strip()) for part in split.split("+")}
    counts = Counter(split_of.values())
    if not counts and asked == {"train"}:
        return list(names), list(names), Counter()
    if missing := sorted(asked - set(counts)):
        there = f"its folders are those of {', '.join(sorted(counts))}" if counts else "it has no such folders"
        raise UserError(
            f"data.split={split!r}: data.path={folder} has no images of {abbreviate(missing)}, {there}; choose "
            "one with data.split, or several joined by +, and rename folders that are classes"
        )
    chosen = [name for name in names if split_of.get(name) in asked]
    left_out = Counter(
        {f"in {name} (data.split={split})": count for name, count in counts.items() if name not in asked}
    )
    if beside := len(names) - len(split_of):
        left_out[f"beside the folders of splits (data.split={split})"] = beside
    return chosen, [inside[name] for name in chosen], left_out
