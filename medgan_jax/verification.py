"""Whether an image file is what it says it is: the generator draws the image again, and both are compared."""

import csv
import dataclasses
import io
import itertools
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from medgan_jax.checkpoint import TrainedGenerator
from medgan_jax.data.dicom import import_pydicom
from medgan_jax.data.dicom_writer import SOP_CLASSES, encode_dicom
from medgan_jax.data.listing import IMAGE_SUFFIXES
from medgan_jax.data.sources import decode_file, inspect_file
from medgan_jax.errors import UserError
from medgan_jax.files import is_litter
from medgan_jax.image_files import DICOM, HEAD, IMAGE, ImageError, recognise
from medgan_jax.images import encode_png, resize
from medgan_jax.progress import progress_bar
from medgan_jax.provenance import KEYWORD, Provenance, from_json, png_text
from medgan_jax.sample_folder import GRID, MANIFEST
from medgan_jax.sampling import MAX_ATTEMPTS, MAX_TRUNCATION, classes_of, numbered_batches, truncated_variables

SAME, ENCODED, ALTERED, OTHER = "same", "encoded anew", "altered", "not of this generator"
UNKNOWN, DAMAGED = "unknown", "damaged"
_ENCODING = 12.0  # grey levels, root mean square: more than JPEG of low quality changes
_HARMLESS = {"IHDR", "IDAT", "IEND", "iTXt", "tEXt", "zTXt", "pHYs", "tIME", "sRGB"}  # chunks of a PNG file
_THUMBNAIL = 16  # px, by which images that name no origin are looked for
_BATCH = 64
_ATTEMPTS_SEARCHED = (0, 1)  # a guard seldom asks for more


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of a file.

    Attributes:
      path: the file.
      verdict: `SAME`; `ENCODED`, with other pixels as JPEG has them; `ALTERED`, in pixels or in what it says; `OTHER`;
        `UNKNOWN`, of latents that are not known; `DAMAGED`; or "" where there was no generator to ask.
      detail: for people.
    """

    path: Path
    verdict: str
    detail: str


@dataclasses.dataclass(frozen=True)
class _File:
    """An image file.

    Attributes:
      path: the file.
      data: its bytes.
      image: as stored, the first of several; None where it cannot be read.
      claim: what it says of its origin.
      is_marked: whether it says that it is synthetic.
      says_less: whether it is a PNG or DICOM file that says so without an origin that can be read, as none of ours is.
      frames: how many images are in it.
    """

    path: Path
    data: bytes
    image: np.ndarray | None = None
    claim: Provenance | None = None
    is_marked: bool = False
    says_less: bool = False
    frames: int = 1


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """An image as the generator draws it."""

    image: np.ndarray
    provenance: Provenance


def verify(
    path: Path,
    generator: TrainedGenerator | None = None,
    mesh: Mesh | None = None,
    *,
    seed: int = 0,
    search: int = 1000,
    tolerance: int = 0,
) -> Iterator[Finding]:
    """Compares image files with what they say of themselves.

    Args:
      path: a PNG, DICOM, JPEG or other image file, or a folder of them.
      generator: to draw the images again; without, only what the files say is said.
      mesh: the devices; goes with a generator.
      seed: of images whose files name no origin, such as JPEG files made of ours.
      search: among how many images of that seed, of each class, they are looked for.
      tolerance: grey levels by which a pixel may differ and count as the same: devices round differently.

    Yields:
      A finding for each file, sorted by name.

    Raises:
      UserError: there are no image files.
    """
    files = [_read(each, generator) for each in _image_files(path)]
    if generator is None or mesh is None:
        yield from (Finding(file.path, "", _claimed(file)) for file in files)
        return
    drawn = _drawn_again(files, generator, mesh)
    if lost := [file for file in files if file.claim is None and file.image is not None and not file.says_less]:
        drawn |= _looked_for(lost, generator, mesh, seed, search)
    for file in files:
        yield Finding(
            file.path, *_judged(file, drawn.get(file.path), generator, f"{search} images of seed {seed}", tolerance)
        )


def _image_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; give images, or a folder of them")
    if path.is_file():
        return [path]
    named = {path / name for name in _names(path / MANIFEST)}
    found = [each for each in named if not each.exists()]
    for each in set(path.rglob("*")) - ({path / GRID} if named else set()):
        if each.is_file() and not is_litter(each.name):
            with open(each, "rb") as file:
                is_image = recognise(file.read(HEAD)) in (IMAGE, DICOM)
            if is_image or each in named or each.suffix.lower() in IMAGE_SUFFIXES:  # the latter may be damaged
                found.append(each)
    if not found:
        raise UserError(f"{path}: holds no image files; give a folder of images, or one image")
    return sorted(found)


def _names(manifest: Path) -> list[str]:
    """The files that a manifest names; none where there is none."""
    try:
        with open(manifest, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [row["file"] for row in csv.DictReader(file) if row.get("file")]
    except (OSError, csv.Error):
        return []


def _read(path: Path, generator: TrainedGenerator | None) -> _File:
    if not path.exists():
        return _File(path, b"")
    data = path.read_bytes()
    frames, is_ours = 1, True
    reading: dict[str, Any] = {"min_side": None, "window": "auto", "bits": 16, "values": None, "frame": 0}
    try:
        is_marked = inspect_file(path).synthetic
        image = decode_file(data, channels=generator.module.channels if generator else 3, **reading)
        if recognise(data[:HEAD]) == DICOM:
            dataset = import_pydicom().dcmread(io.BytesIO(data), stop_before_pixels=True)
            items = dataset.get("ContributingEquipmentSequence") or ()
            said = next((str(item.get("ContributionDescription", "")) for item in items), "")
        else:
            with Image.open(io.BytesIO(data)) as opened:
                said, is_ours = str(opened.info.get(KEYWORD, "")), opened.format == "PNG"
                frames = getattr(opened, "n_frames", 1)
    except (ImageError, OSError):
        return _File(path, data)
    claim = from_json(said)
    return _File(path, data, image, claim, is_marked, is_ours and is_marked and claim is None, frames)


def claim_of(path: Path) -> Provenance | None:
    """What an image file says of what drew it; None where it says nothing."""
    return _read(path, None).claim


def _claimed(file: _File) -> str:
    if file.image is None:
        return _unread(file)
    if claim := file.claim:
        origin = "of latents of the caller's" if claim.seed is None else f"image {claim.index} of seed {claim.seed}"
        of_class = f", class {claim.label}" if claim.label else ""
        return f"says that it is synthetic: {origin}{of_class}, by generator {claim.generator} of step {claim.step}"
    return "is marked as synthetic, and names no generator" if file.is_marked else "says nothing of where it comes from"


def _unread(file: _File) -> str:
    if not file.data:
        return "is empty" if file.path.exists() else f"is missing, and {MANIFEST} names it"
    return "is a movie, and these are not drawn again" if _is_movie(file) else "cannot be read"


def _is_movie(file: _File) -> bool:
    return recognise(file.data[:HEAD]) == "video"


def _can_draw(claim: Provenance, generator: TrainedGenerator) -> bool:
    return (
        claim.seed is not None
        and 0 <= claim.seed < 2**32
        and 0 <= claim.index < 2**31
        and 0 <= claim.attempt < MAX_ATTEMPTS
        and claim.label in (generator.classes or ("",))
        and (claim.truncation is None or 0 < claim.truncation <= MAX_TRUNCATION)
    )


def _drawn_again(files: Sequence[_File], generator: TrainedGenerator, mesh: Mesh) -> dict[Path, _Drawn]:
    """The images of the files that say they are of this generator, drawn by it."""
    groups: dict[tuple[int, str, float | None], list[tuple[Path, int, int]]] = defaultdict(list)
    for file in files:
        if (claim := file.claim) and claim.generator == generator.digest and _can_draw(claim, generator):
            assert claim.seed is not None
            groups[claim.seed, claim.label, claim.truncation].append((file.path, claim.index, claim.attempt))
    found = {}
    with progress_bar(sum(map(len, groups.values())), unit="image", desc="drawing again") as bar:
        for (seed, label, truncation), members in groups.items():
            numbers = np.array([member[1:] for member in members], np.int32).T
            images = _draw(generator, mesh, *numbers, seed=seed, label=label, truncation=truncation)
            for (path, index, attempt), image in zip(members, images, strict=True):
                of_image = generator.provenance(
                    seed=seed, index=index, label=label, truncation=truncation, attempt=attempt
                )
                found[path] = _Drawn(image, of_image)
                bar.update()
    return found


def _draw(
    generator: TrainedGenerator,
    mesh: Mesh,
    indices: np.ndarray,
    attempts: np.ndarray,
    *,
    seed: int,
    label: str,
    truncation: float | None = None,
) -> Iterator[np.ndarray]:
    """The images of `indices`, one by one."""
    batches = numbered_batches(
        generator,
        truncated_variables(generator, truncation),
        indices,
        attempts,
        seed=seed,
        truncation=truncation,
        batch_size=-(-_BATCH // mesh.size) * mesh.size,
        mesh=mesh,
        labels_of=classes_of(generator, label or None),
    )
    for batch in batches:
        yield from batch


def _looked_for(
    lost: Sequence[_File], generator: TrainedGenerator, mesh: Mesh, seed: int, search: int
) -> dict[Path, _Drawn]:
    """Of files that name no origin, the image of this generator that is most like each."""
    thumbnails = np.stack([_thumbnail(file.image) for file in lost if file.image is not None])
    least = np.full(len(lost), np.inf)
    found = {}
    draws = list(itertools.product(generator.classes or ("",), _ATTEMPTS_SEARCHED))
    numbers = np.arange(search, dtype=np.int32)
    with progress_bar(search * len(draws), unit="image", desc="looking for origins") as bar:
        for label, attempt in draws:
            attempts = np.full_like(numbers, attempt)
            for index, image in enumerate(_draw(generator, mesh, numbers, attempts, seed=seed, label=label)):
                distances = np.square(thumbnails - _thumbnail(image)).sum((1, 2, 3))
                for i in np.flatnonzero(distances < least).tolist():
                    of_image = generator.provenance(seed=seed, index=index, label=label, attempt=attempt)
                    found[lost[i].path] = _Drawn(image, of_image)
                least = np.minimum(least, distances)
                bar.update()
    return found


def _thumbnail(image: np.ndarray) -> np.ndarray:
    return resize(image, _THUMBNAIL).astype(np.float32)


def _judged(
    file: _File, drawn: _Drawn | None, generator: TrainedGenerator, searched: str, tolerance: int
) -> tuple[str, str]:
    """Verdict and detail."""
    if file.image is None:
        return UNKNOWN if _is_movie(file) else DAMAGED, _unread(file)
    if file.frames > 1:
        return UNKNOWN, f"has {file.frames} images, and none of ours has more than one; movies are not drawn again"
    size = generator.module.image_size
    if file.says_less:  # a grid, or a picture of a training, if it has another size
        verdict = ALTERED if file.image.shape[:2] == (size, size) else UNKNOWN
        return verdict, "says that it is synthetic, and not what drew it"
    if (claim := file.claim) and claim.generator != generator.digest:
        return OTHER, f"says that it is of generator {claim.generator}"
    if claim and claim.seed is None:
        return UNKNOWN, "says that it was drawn from latents of the caller's, which are not known here"
    if drawn is None:
        return ALTERED, "says what this generator cannot draw"
    is_resized = file.image.shape[:2] != (size, size)
    image = resize(file.image, size) if is_resized else file.image
    differences = np.abs(image.astype(int) - drawn.image)
    largest, changed = int(differences.max()), int((differences > tolerance).sum())
    amount = f"largest difference {largest}, in {changed} of {differences.size} values"
    if claim is None:
        origin = f"image {drawn.provenance.index} of seed {drawn.provenance.seed}"
        origin += f", class {drawn.provenance.label}" if drawn.provenance.label else ""
        if np.sqrt(np.mean(np.square(differences))) > _ENCODING:
            return OTHER, f"names no generator, and is not among {searched}"
        return ENCODED, f"names no generator, and is {origin}{', resized' if is_resized else ''}: {amount}"
    if changed or is_resized:
        return ALTERED, "has another size" if is_resized else amount
    return _judged_texts(file, drawn, claim, largest)


def _judged_texts(file: _File, drawn: _Drawn, claim: Provenance, largest: int) -> tuple[str, str]:
    """Of a file whose pixels are as drawn: whether it says what it said."""
    origin = dataclasses.replace(drawn.provenance, software=claim.software)
    rounded = f"largest difference {largest}" if largest else ""
    if recognise(file.data[:HEAD]) == DICOM:
        is_ours = any(
            file.data == encode_dicom(file.image, kind=kind, provenance=origin)  # type: ignore[arg-type]
            for kind in SOP_CLASSES
        )
        return (SAME, rounded) if is_ours else (ALTERED, "the pixels are as drawn, its DICOM elements are not")
    expected = png_text(origin)
    found, wanted = _chunks(file.data), _chunks(encode_png(drawn.image, expected))
    if found is None:
        return DAMAGED, "the pixels are as drawn, but a check sum is wrong"
    if found == wanted:  # but for how pixels are compressed
        return SAME, rounded
    with Image.open(io.BytesIO(file.data)) as opened:
        texts = dict(getattr(opened, "text", {}))
    if unlike := sorted(key for key in texts.keys() | expected.keys() if texts.get(key) != expected.get(key)):
        return ALTERED, f"the pixels are as drawn, its text is not: {', '.join(unlike)}"
    if foreign := sorted({name.decode("latin-1") for name, _ in found} - _HARMLESS):
        return ALTERED, f"pixels and text are the same, but it has parts that are not ours: {', '.join(foreign)}"
    return ENCODED, "pixels and text are the same"


def _chunks(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """The chunks of a PNG file, but for the pixels; None where a check sum is wrong, or more follows."""
    place, found = 8, []
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        body = data[place + 4 : end]
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(body)):
            return None
        if body[:4] != b"IDAT":
            found.append((body[:4], body[4:]))
        place = end + 4
    return found if place == len(data) else None
