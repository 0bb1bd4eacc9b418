"""The image files of a folder: which there are, which of them are masks by their names, and what else lies there."""

import contextlib
import fnmatch
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from medgan_jax.data.classes import composed
from medgan_jax.errors import UserError, abbreviate, reason_of
from medgan_jax.files import LITTER
from medgan_jax.image_files import DICOM, HEAD, IMAGE, recognise

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .bmp .tif .tiff .webp .gif .pbm .pgm .ppm .pnm .jp2 .j2k .jpx"
DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = frozenset((*_SUFFIXES.split(" "), *DICOM_SUFFIXES))
_HIDDEN = "hidden"
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
_SPLITS_IN_NAMES = _SPLITS | {"tr": "train", "ts": "test"}  # as in imagesTr
_SPLIT_WORD = re.compile(rf"({'|'.join(_SPLITS_IN_NAMES)})(sets?|data|images?|)")
_ESCAPED = re.compile(r"[][?*,]")  # what means something in data.exclude
_WORD = re.compile(  # of a name; letters that end in "mask" are two
    r"(?i:ground[ _-]?truths?|super[ _-]?pixels?)|[A-Za-z]+?(?=(?i:masks?)(?![A-Za-z]))"
    r"|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+"
)
_ANNOTATIONS = "ground[ _-]?truths?|gt|masks|segmentations?|super[ _-]?pixels?|annotations|labels"
_OF_FOLDER = rf"{_ANNOTATIONS}|mask|segm?|annotation|annot?s?|label|lbls?|(?:label|seg|tri)maps?|manual"
_OF_FILE = rf"{_OF_FOLDER}|segmented|annotated|contours?|outlines?|overlays?|rois?|bw|binary|semantic|bbox(?:es)?"
_FOLDER = re.compile(rf"(?:.*[ _.-])?(?:{_ANNOTATIONS})", re.IGNORECASE)
_WORD_OF_FOLDER = re.compile(_OF_FOLDER, re.IGNORECASE)
_FOLDER_OF_SAME_NAMES = re.compile(_OF_FILE, re.IGNORECASE)
_WORD_OF_FILE = re.compile(rf"{_OF_FILE}|attribute", re.IGNORECASE)  # ISIC 2018 has an x_attribute_globules


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
      include: patterns of `fnmatch` separated by commas, of which a path must match one, in composed or decomposed
        Unicode; "" is any path.
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
            shown = composed(name)
            if other := _other_kind(path):
                left_out[other] += 1
            elif pattern := next((each for each in unwanted if fnmatch.fnmatchcase(shown, each)), ""):
                left_out[f"by data.exclude={pattern}"] += 1
            elif wanted and not any(fnmatch.fnmatchcase(shown, each) for each in wanted):
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
    return [pattern.strip() for pattern in composed(text).split(",") if pattern.strip()]


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
    """Refuses masks and other annotations that lie among images, as `find_annotations` finds them.

    Args:
      names: paths of images below `folder`.
      folder: for messages.
      shown: what a message calls a file.

    Raises:
      UserError: there are any.
    """
    if found := find_annotations(names):
        patterns = ",".join(dict.fromkeys(found.values()))
        listing = abbreviate([shown(name) for name in found])
        raise UserError(
            f"data.path={folder}: {len(found)} of {len(names)} images are masks or annotations of others by their "
            f"names ({listing}); leave them out with data.exclude='{patterns}', or, if they are to be "
            "trained on, say which images are: data.include='*' for all"
        )


def find_annotations(names: Sequence[str]) -> dict[str, str]:
    """Masks, superpixels and other annotations of images, of each a pattern that leaves it out.

    They are known by their names: "x_mask" where there is an image "x" too, all of a folder such as "masks" beside
    others, and of a folder such as "mask" or "gtFine" the files that are called as those of another folder.
    """
    files = [(name, *name.rpartition("/")[::2]) for name in names]
    # What all images lie in says nothing of a single one.
    shared = len(_parts(os.path.commonpath([place for _, place, _ in files])))
    parts = {place: _parts(place)[shared:] for place in {place for _, place, _ in files}}
    of_masks = {place: next(filter(_FOLDER.fullmatch, those), "") for place, those in parts.items()}
    may_hold_masks = {place: next(filter(_may_hold_masks, those), "") for place, those in parts.items()}
    has_images = not all(of_masks.values())
    stems = {os.path.splitext(file)[0].lower() for _, _, file in files}
    starts: set[str] = set()  # of the names of images that are in no folder of annotations, up to the end of a word
    for _, place, file in files:
        if not may_hold_masks[place]:
            stem = os.path.splitext(file)[0].lower()
            starts.update((stem, *(stem[: word.end()] for word in _WORD.finditer(stem))))

    found: dict[str, str] = {}
    for name, place, file in files:
        stem, suffix = os.path.splitext(file)
        part = of_masks[place] if has_images else ""
        if not part and may_hold_masks[place]:
            images = {stem, *(stem[: word.start()].rstrip(" _.-(") for word in _words_of_mask(stem))}
            part = "" if starts.isdisjoint(map(str.lower, images)) else may_hold_masks[place]
        if part:
            escaped = _ESCAPED.sub("?", part)
            found[name] = f"{escaped}/*" if place.partition("/")[0] == part else f"*/{escaped}/*"
        elif pattern := _pattern_of_mask(stem, stems):
            found[name] = pattern + suffix
    return found


def _parts(place: str) -> list[str]:
    return [part for part in place.split("/") if part]


def _may_hold_masks(part: str) -> bool:
    """Whether the name of a folder is one of annotations, or has a word for them."""
    words = (word[0] for word in _WORD.finditer(part))
    return bool(_FOLDER_OF_SAME_NAMES.fullmatch(part)) or any(map(_WORD_OF_FOLDER.fullmatch, words))


def _words_of_mask(stem: str) -> list[re.Match[str]]:
    """The words for an annotation in the name of a file."""
    return [word for word in _WORD.finditer(stem) if _WORD_OF_FILE.fullmatch(word[0])]


def _pattern_of_mask(stem: str, images: set[str]) -> str:
    """A pattern for the file `stem` and its like where it is an annotation of one of `images` by its name, else ""."""
    if not (words := _words_of_mask(stem)):
        return ""
    starts = {found.start() for found in _WORD.finditer(stem)}
    for end in range(words[-1].start(), 0, -1):
        if (end in starts or not stem[end].isalnum()) and stem[:end].lower() in images:
            return "*" + _ESCAPED.sub("*", re.sub(r"\d+", "*", stem[end:]))
    for start in range(words[0].end() + 1, len(stem)):
        if not stem[start - 1].isalnum() and stem[start:].lower() in images:
            return f"*{_ESCAPED.sub('*', stem[:start])}*"
    return ""


def choose_split(names: Sequence[str], split: str, *, folder: str) -> tuple[list[str], list[str], Counter[str]]:
    """The images of a split, where folders are called train, test, val, or such; all where there are no such folders.

    Folders beside each other may have more in their names, if they are otherwise alike, such as train_images and
    test_images.

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
    split_of_folder = _split_folders(names)
    for name in names:
        parts = name.split("/")
        paths = ("/".join(parts[: i + 1]) for i in range(len(parts) - 1))
        place = next((i for i, path in enumerate(paths) if path in split_of_folder), None)
        if place is not None:
            split_of[name] = split_of_folder["/".join(parts[: place + 1])]
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


def _split_folders(names: Sequence[str]) -> dict[str, str]:
    """The split of each folder that is one, by its path."""
    places = [_parts(place) for place in {name.rpartition("/")[0] for name in names}]
    found = {}
    alike: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)  # by the folder above and all other words
    for path in {"/".join(parts[: i + 1]) for parts in places for i in range(len(parts))}:
        above, _, folder = path.rpartition("/")
        if split := _SPLITS.get(folder.strip().lower()):
            found[path] = split
            continue
        words = [word.lower() for word in _WORD.findall(folder)]
        matches = [_SPLIT_WORD.fullmatch(word) for word in words]
        splits = [_SPLITS_IN_NAMES[match[1]] for match in matches if match]
        others = [match[2] if match else word for word, match in zip(words, matches, strict=True) if not word.isdigit()]
        if len(splits) == 1 and (len(words) > 1 or any(others)):
            alike[above, *others][path] = splits[0]
    for folders in alike.values():
        if len(set(folders.values())) > 1:
            found |= folders
    return found
