"""Reading image files: what a file is, what its header says, and its pixels.

Layout and range are those of `images`: uint8 (height, width, channels).
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from medgan_jax.errors import placeholder_kind
from medgan_jax.images import as_array
from medgan_jax.provenance import is_synthetic

MAX_PIXELS = 100_000_000
MAX_FRAMES = 100_000  # of a file
VERSION = 1  # raise when decode_image or images.resize give other pixels: caches are keyed by it
HEAD = 4096  # bytes at the start of a file, by which it is recognised
IMAGE, DICOM = "image", "DICOM file"  # what `recognise` calls these two
_LIMIT = f"limit {MAX_PIXELS // 1_000_000} megapixels"
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
_MULTI_FRAME = ("TIFF", "GIF", "WEBP", "PNG")  # a JPEG of several pictures is a photograph and its by-products
_XMP_TAG = 700  # of TIFF
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (128, b"DICM", DICOM),  # first: its preamble may be that of a TIFF
    (0, b"\xff\xd8\xff", IMAGE),
    (0, b"\x89PNG\r\n\x1a\n", IMAGE),
    (0, b"GIF8", IMAGE),
    (0, b"II*\0", IMAGE),
    (0, b"MM\0*", IMAGE),
    (8, b"WEBP", IMAGE),
    (4, b"jP  \r\n\x87\n", IMAGE),  # JPEG 2000, and its codestream
    (0, b"\xff\x4f\xff\x51", IMAGE),
    (0, b"%PDF", "PDF document"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"\x1f\x8b", "gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!", "rar archive"),
    (257, b"ustar", "tar archive"),
    (4, b"ftyphei", "HEIC image"),
    (4, b"ftypmif", "HEIC image"),
    (4, b"ftypavif", "AVIF image"),
    (4, b"ftyp", "video"),
    (8, b"AVI ", "video"),
    (0, b"\x1aE\xdf\xa3", "video"),
    (0, b"\0\0\x01\xba", "video"),
    (0, b"\x89HDF", "HDF5 file"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"NRRD0", "NRRD volume"),
    (344, b"n+1\0", "NIfTI volume"),
)
_PATTERNS = (
    (rb"P[1-6]\s+[#\d]", IMAGE),  # PBM, PGM, PPM
    (rb"BM.{4}\0{4}.{4}[\x0c\x28\x6c\x7c]\0{3}", IMAGE),
    # DICOM without its preamble: an element of group 2 or 8, then its type, or an even length below 256.
    (
        rb"([\x02\x08]\0[\0-\x23]\0|\0[\x02\x08]\0[\0-\x23])(UL|UI|CS|OB|SH|DA|[\0-\xff]\0\0\0|\0\0\0[\0-\xff])",
        DICOM,
    ),
)
_REMEDIES = {
    IMAGE: "not an image",  # has the first bytes of one, and Pillow cannot read it
    "": "not an image",
    "Git LFS pointer": "Git LFS pointer, run git lfs pull",
    "git-annex pointer": "git-annex pointer, run git annex get",
    "web page": "web page saved as an image",
}


class ImageError(ValueError):
    """Bytes that are not a usable image; the message is a short reason, such as "truncated"."""


class ImageInfo(NamedTuple):
    """What the header of an image file says, and of samples that may be darker than they should, the range.

    Attributes:
      height: in pixels, upright.
      width: likewise.
      channels: 1 or 3, as `decode_image` would give them if it could choose.
      kind: for people, such as "RGB" or "16-bit grey".
      frames: pages of a TIFF, or pictures of an animation.
      brightest: the largest value of 16-bit samples, where the format does not say which value is white; else 0.
      declared_bits: how many of these 16 bits a tag declares to be used; 0 where none does.
      two_values: whether all pixels have one of just two colours. Of JPEG, never.
      values: the least and greatest of a DICOM file's values, where it does not say which are black and white.
      synthetic: whether the file is marked as that of a generated image, see `provenance`.
    """

    height: int
    width: int
    channels: int
    kind: str
    frames: int = 1
    brightest: int = 0
    declared_bits: int = 0
    two_values: bool = False
    values: tuple[float, float] | None = None
    synthetic: bool = False


def recognise(head: bytes) -> str:
    """What a file is by its first `HEAD` bytes: `IMAGE`, `DICOM`, another kind in words, or "" if unknown."""
    for start, signature, kind in _SIGNATURES:
        if head.startswith(signature, start):
            return kind
    patterns = (kind for pattern, kind in _PATTERNS if re.match(pattern, head, re.DOTALL))
    return placeholder_kind(head) or next(patterns, "")


def decode_image(
    data: bytes,
    *,
    channels: int,
    min_side: int | None = None,
    window: int | tuple[float, float] | None = 16,
    frame: int | None = 0,
) -> np.ndarray:
    """Decodes a JPEG, PNG, BMP, TIFF, WebP, GIF, PNM or JPEG 2000 file, upright as EXIF says.

    Transparency is laid over black, the background of most medical images. Grey is ITU-R 601 luma.

    Args:
      data: the file.
      channels: 1 (grey) or 3 (RGB).
      min_side: the size that `images.resize` will be asked for. A JPEG may then be decoded at 1/2, 1/4 or 1/8
        of its size, several times faster, but never below twice `min_side`.
      window: which samples become 0 and 255. A number: samples of 16 bits, whose white the format does not state, use
        only so many, from 8 to 16, and their upper 8 are kept. Two values: they become 0 and 255, in files of all
        depths, what is between in proportion. None: where the format states no white, 16 bits are refused.
      frame: which one of a file of several, from 0; None refuses such a file.

    Returns:
      uint8, of shape (height, width, channels).

    Raises:
      ImageError: whatever is wrong with the bytes.
    """
    with _as_image_errors(data[:HEAD]), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_size(image)
        frames = _frames(image) if frame is None or image.format == "PNG" else 1  # in others it takes long
        if frame is None and frames > 1:
            raise ImageError(f"{frames} frames: set data.frames=first")
        if frame:
            image.seek(frame)
        if min_side:
            image.draft(None, (2 * min_side, 2 * min_side))
        white = _stated_white(image, data[:HEAD])
        is_deep_colour = _is_deep_colour(image, data[:HEAD])
        image.load()
        with contextlib.suppress(Exception):  # damaged tags are no damage to the pixels
            ImageOps.exif_transpose(image, in_place=True)
        if is_deep_colour:
            _check_deep_colour(window)
        elif image.mode.startswith(("I", "F")):
            return as_array(_windowed(image, white, window), channels)
        pixels = as_array(image, channels)
        return between_8_bits(pixels, *window) if isinstance(window, tuple) else pixels


def inspect_image(path: str | os.PathLike) -> ImageInfo:
    """Reads the header of an image file; of some files the pixels too, see `ImageInfo`.

    Raises:
      ImageError: it is not an image.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        with _as_image_errors(head), Image.open(file, formats=_FORMATS) as image:
            _check_size(image)
            height, width = _upright(image)
            is_grey = image.mode.startswith(("1", "L", "I", "F"))
            is_deep_grey = _is_deep_grey(image)
            is_deep = is_deep_grey or _is_deep_colour(image, head)
            kind = {"L": "grey", "1": "black and white", "P": "palette"}.get(image.mode, image.mode)
            if is_deep:
                kind = f"16-bit {'grey' if is_deep_grey else image.mode}"
            elif image.mode in ("I", "F"):
                kind = "32-bit or signed grey"
            frames, brightest, bits, two_values = _frames(image), 0, 0, False
            synthetic = _is_marked(image)
            if is_deep and _stated_white(image, head) is None:
                bits = _declared_bits(image, head)
                for frame in range(frames):
                    image.seek(frame)
                    samples = np.asarray(image if is_deep_grey else image.convert("RGB"))
                    low, high = int(samples.min()), int(samples.max())
                    brightest = max(brightest, high if is_deep_grey else 256 * high + 255)
                    two_values = low < high and bool(((samples == low) | (samples == high)).all())
            elif _may_have_two_values(image, size):
                two_values = len(image.getcolors(2) or ()) == 2
    return ImageInfo(height, width, 1 if is_grey else 3, kind, frames, brightest, bits, two_values, None, synthetic)


def is_marked_synthetic(data: bytes) -> bool:
    """Whether an image file is marked as that of a generated image; False of what is no image."""
    with contextlib.suppress(ImageError), _as_image_errors(data[:HEAD]):
        return _is_marked(Image.open(io.BytesIO(data), formats=_FORMATS))
    return False


def _is_marked(image: Image.Image) -> bool:
    return is_synthetic(image.info | {"xmp": image.info.get("xmp") or _tags(image).get(_XMP_TAG)})


@contextlib.contextmanager
def _as_image_errors(head: bytes) -> Iterator[None]:
    """Makes an ImageError of whatever Pillow raises about a file that begins with `head`."""
    if not head:
        raise ImageError("empty file")
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        kind = recognise(head)
        raise ImageError(_REMEDIES.get(kind, kind)) from None
    except Image.DecompressionBombError:  # Pillow refuses files far above our limit before we see their size
        raise ImageError(f"too large: {_LIMIT}") from None
    except Exception as error:  # on damaged bytes Pillow's parsers raise nearly anything
        reason = " ".join(str(error).split())[:80]
        cut = isinstance(error, EOFError) or "truncated" in reason.lower()
        raise ImageError("truncated" if cut else f"damaged: {reason or type(error).__name__}") from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"too large: {image.width} x {image.height} pixels, {_LIMIT}")


def _frames(image: Image.Image) -> int:
    """How many frames an image that is not loaded has."""
    frames = getattr(image, "n_frames", 1) if image.format in _MULTI_FRAME else 1
    if frames > 1 and image.format == "PNG":  # Pillow takes the header's word; each frame has a control chunk
        file, default = image.fp, image.default_image  # type: ignore[attr-defined]
        place = file.tell()
        file.seek(0)
        held = file.read().count(b"fcTL") + default
        file.seek(place)
        if held < frames:
            raise ImageError("truncated")
    return check_frames(frames)


def check_frames(frames: int) -> int:
    """The number of a file's frames.

    Raises:
      ImageError: it is above `MAX_FRAMES`.
    """
    if frames > MAX_FRAMES:
        raise ImageError(f"too many frames: limit {MAX_FRAMES}")
    return frames


def _upright(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image that is not loaded, as it is upright."""
    width, height = image.size
    with contextlib.suppress(Exception):  # damaged tags are no damage to the pixels
        # Of a TIFF, Pillow gives the size as it is upright. Of a PNG it would load the pixels, to look for EXIF behind
        # them.
        known = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
        if not known and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
            width, height = height, width
    return height, width


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})  # of a TIFF


def _is_deep_grey(image: Image.Image) -> bool:
    """Whether an image has grey samples of 9 to 16 bits, without a sign; Pillow scales those of PGM to 16."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _is_deep_colour(image: Image.Image, head: bytes) -> bool:
    """Whether an image that is not loaded has samples of 16 bits, of which Pillow will keep the upper 8."""
    if image.mode.startswith(("I", "F")):
        return False
    if image.format == "TIFF":
        bits = _tags(image).get(ExifTags.Base.BitsPerSample, (8,))
        if len(bits) > 1 and max(bits) > 8 and _tags(image).get(ExifTags.Base.PlanarConfiguration) == 2:
            raise ImageError("16-bit TIFF with separate colour planes")  # Pillow gets its pixels wrong
        return max(bits) > 8
    if image.format == "JPEG2000":
        return _jpeg2000_bits(head) == 16
    arguments = str(image.tile[0].args if image.tile else "")  # type: ignore[attr-defined]
    return (image.format == "PNG" and ";16" in arguments) or (image.format == "PPM" and "65535" in arguments)


def _check_deep_colour(window: int | tuple[float, float] | None) -> None:
    if isinstance(window, tuple):
        raise ImageError(
            "16-bit colour, of which only the upper 8 bits can be read: set data.window=full, or convert it"
        )
    if window != 16:
        raise ImageError(
            "16-bit colour that does not use all bits, of which only the upper 8 can be read: convert it, or set "
            "data.window=full"
        )


def _stated_white(image: Image.Image, head: bytes) -> int | None:
    """The value of white in grey samples of more than 8 bits, where the format itself states it."""
    if not _is_deep_grey(image):
        return None
    if image.format == "PPM":
        arguments = image.tile[0].args  # type: ignore[attr-defined]
        white = arguments[1] if isinstance(arguments, tuple) else 65535
    else:
        (bits, *_) = _tags(image).get(ExifTags.Base.BitsPerSample, (16,))
        white = 2 ** (_jpeg2000_bits(head) if image.format == "JPEG2000" else bits) - 1
    return white if white < 65535 else None


def _jpeg2000_bits(head: bytes) -> int:
    """Bits of a sample: the image header box has them less one, a bare codestream in its first segment, SIZ."""
    place = 42 if head.startswith(b"\xff\x4f") else head.find(b"ihdr") + 14
    return (head[place] & 0x7F) + 1


def _declared_bits(image: Image.Image, head: bytes) -> int:
    """How many bits of 16 a tag declares to be used; 0 where none does."""
    if image.format == "PNG":
        _, found, rest = head.partition(b"IDAT")[0].partition(b"sBIT")
        bits = rest[0] if found and rest else 0
    else:
        largest = (_tags(image).get(tag, 0) for tag in (281, 341))  # MaxSampleValue, SMaxSampleValue of TIFF 6.0
        bits = max(int(np.max(value)) for value in largest).bit_length()
    return bits if 8 < bits < 16 else 0


def _may_have_two_values(image: Image.Image, size: int) -> bool:
    """Whether the pixels are worth a look: two values compress well, where they are kept exactly and compressed.

    A file as large as its samples is not compressed, even a PNG. Palettes have fewer bits a sample, but are rare.
    """
    if image.mode.startswith(("I", "F")) or image.format in ("JPEG", "MPO"):
        return False
    pixels = image.width * image.height
    is_raw = image.mode == "P" or image.format in ("BMP", "PPM") or image.info.get("compression") == "raw"
    return is_raw or size < pixels / 4 + 1000 or size >= pixels * len(image.getbands())


def _windowed(image: Image.Image, white: int | None, window: int | tuple[float, float] | None) -> Image.Image:
    """Brings a loaded grey image of more than 8 bits a sample to 8."""
    samples = np.asarray(image)
    tags = _tags(image)
    if image.mode == "I" and tags.get(ExifTags.Base.SampleFormat, (1,))[0] == 1:
        samples = samples.view(np.uint32)
    if isinstance(window, tuple):
        if white and image.format == "PPM":  # Pillow has scaled them to 16 bits
            samples = np.rint(samples * (white / 65535))
        elif white and image.format == "JPEG2000":
            samples = samples >> (16 - white.bit_length())
        grey = _between(samples, *window)
    else:
        if white and image.format in ("PPM", "JPEG2000"):
            white = 65535
        if not _is_deep_grey(image):
            raise ImageError(
                "32-bit or signed samples, whose range is unknown: set data.window=LOW,HIGH, the values of black and "
                "white"
            )
        if white is None:
            if window is None:
                raise ImageError("16 bits a sample: set data.window=full, or LOW,HIGH")
            white = 2**window - 1
        grey = (samples.astype(np.uint32) >> (white.bit_length() - 8)).clip(max=255).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero, which Pillow overlooks
        grey = 255 - grey
    return Image.fromarray(grey)


def between_8_bits(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 pixels of any shape, where `low` and less becomes 0, `high` and more 255.

    Raises:
      ImageError: `high` is no value of 8 bits.
    """
    if high > 255:
        raise ImageError(f"8 bits a sample, which data.window={low:g},{high:g} is not for")
    return _between(np.arange(256), low, high)[pixels]


def _between(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8, where `low` and less becomes 0, `high` and more 255; what is no number, 0."""
    share = (samples.astype(np.float64) - low) / (high - low)
    return np.rint(255 * np.nan_to_num(share.clip(0, 1))).astype(np.uint8)
