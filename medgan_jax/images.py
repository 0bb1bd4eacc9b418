"""Decoding, resizing, value ranges, grids and PNG files.

Layout: (height, width, channels) for an image and NHWC for a batch; channels is 1 (grey) or 3 (RGB).
Range: "uint8", 0 to 255, in files and in the data path; "signed", float32 in [-1, 1], in the networks; "unit",
float32 in [0, 1], in the metrics. Only the functions of this module go from one range to another.
"""

import contextlib
import io
import math
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from medgan_jax.errors import naming

if TYPE_CHECKING:
    import jax

Array = TypeVar("Array", np.ndarray, "jax.Array")

MAX_PIXELS = 100_000_000
VERSION = 1  # raise when decode_image or resize_crop give other pixels: caches are keyed by it

_LIMIT = f"limit {MAX_PIXELS // 1_000_000} megapixels"
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


class ImageError(ValueError):
    """Bytes that are not a usable image; the message is a short reason, such as "truncated"."""


def decode_image(data: bytes, *, channels: int, min_side: int | None = None) -> np.ndarray:
    """Decodes a JPEG, PNG, BMP, TIFF, WebP or GIF file (of several frames, the first), upright as EXIF says.

    Transparency is laid over black, the background of most medical images. Of 16-bit samples the high byte is
    kept: the full range is scaled, so a 12-bit scan stored in 16 bits comes out dark. Grey is ITU-R 601 luma.

    Args:
      data: the file.
      channels: 1 (grey) or 3 (RGB).
      min_side: the size that `resize_crop` will be asked for. A JPEG may then be decoded at 1/2, 1/4 or 1/8
        of its size, several times faster, but never below twice `min_side`.

    Returns:
      uint8, of shape (height, width, channels).

    Raises:
      ImageError: whatever is wrong with the bytes.
    """
    if not data:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"too large: {image.width} x {image.height} pixels, {_LIMIT}")
            if min_side:
                image.draft(None, (2 * min_side, 2 * min_side))
            image.load()
            with contextlib.suppress(Exception):  # damaged tags are no damage to the pixels
                ImageOps.exif_transpose(image, in_place=True)
            return _as_array(_eight_bit(image), channels)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Image.DecompressionBombError:  # Pillow refuses files far above our limit before we see their size
        raise ImageError(f"too large: {_LIMIT}") from None
    except Exception as error:  # on damaged bytes Pillow's parsers raise nearly anything
        reason = " ".join(str(error).split())[:80]
        cut = isinstance(error, EOFError) or "truncated" in reason.lower()
        raise ImageError("truncated" if cut else f"damaged: {reason or type(error).__name__}") from error


def image_shape(path: str | os.PathLike) -> tuple[int, int, int]:
    """Height, width and channels of an image file from its header, as `decode_image` would give them: 1 or 3 channels.

    Raises:
      ImageError: it is not an image.
      OSError: it cannot be read.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            with contextlib.suppress(Exception):  # damaged tags are no damage to the pixels
                # Of a TIFF, Pillow gives the size as it is upright.
                if image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
                    width, height = height, width
            grey = image.mode.startswith(("1", "L", "I", "F"))
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
        raise ImageError("not an image") from None
    return height, width, 1 if grey else 3


def _eight_bit(image: Image.Image) -> Image.Image:
    """Brings a loaded image to 8 bits a sample."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, ())
    if len(bits) > 1 and max(bits) > 8 and tags.get(ExifTags.Base.PlanarConfiguration) == 2:
        raise ImageError("16-bit TIFF with separate colour planes")  # Pillow gets its pixels wrong
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero, which Pillow overlooks
            samples = ~samples
        return Image.fromarray((samples >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError("32-bit or signed samples, whose range is unknown")
    return image


def _as_array(image: Image.Image, channels: int) -> np.ndarray:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    pixels = np.asarray(image.convert({1: "L", 3: "RGB"}[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def convert_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts a uint8 (height, width, 1 or 3) image to grey or RGB, as `decode_image` does."""
    return image if image.shape[2] == channels else _as_array(_from_array(image), channels)


def _from_array(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def resize_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` and crops the centre, in one resampling.

    Antialiased bicubic by Pillow: the resampling that scores of generated images are least misled by (Parmar
    et al. 2022, arXiv:2104.11222). Smaller images are enlarged.

    Args:
      image: uint8, (height, width, 1 or 3).
      size: height and width of the result.

    Returns:
      uint8, of shape (size, size, channels).
    """
    height, width, channels = image.shape
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    resized = _from_array(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).reshape(size, size, channels)


def uint8_to_signed(x: Array) -> Array:
    """From 0..255 to [-1, 1]; numpy or (traced) JAX, of any shape, as are all conversions."""
    return x.astype(np.float32) / 127.5 - 1


def signed_to_uint8(x: Array) -> Array:
    """From [-1, 1] to the nearest of 0..255; values outside are clipped."""
    return ((x.astype(np.float32) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def unit_to_signed(x: Array) -> Array:
    """From [0, 1] to [-1, 1]."""
    return x.astype(np.float32) * 2 - 1


def uint8_to_unit(x: Array) -> Array:
    """From 0..255 to [0, 1]."""
    return x.astype(np.float32) / 255


def image_grid(images: np.ndarray, *, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """Lays images out row by row on black.

    Args:
      images: uint8, (number, height, width, channels).
      columns: images in a row; by default the grid is near square.
      padding: width in pixels of the black lines between and around the images.

    Returns:
      uint8, of shape (rows * (height + padding) + padding, columns * (width + padding) + padding, channels).
    """
    number, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    height, width = height + padding, width + padding
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:number, padding:, padding:] = images
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    return np.pad(grid, ((0, padding), (0, padding), (0, 0)))


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a uint8 (height, width, 1 or 3) image as a PNG file, as `replace_file` does.

    The same image gives the same bytes under one version of zlib.
    """
    replace_file(path, encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """PNG (ISO/IEC 15948) of a uint8 image: each row less the one above, then run lengths and Huffman codes.

    Pillow takes about twice as long for as many bytes, and keeps all other threads waiting meanwhile.
    """
    height, width, channels = image.shape
    rows = image.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2  # the filter "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    colour = {1: 0, 3: 2}[channels]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0),
        b"IDAT": packer.compress(filtered.data) + packer.flush(),
        b"IEND": b"",
    }
    checked = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


def replace_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole, or not at all.

    Raises:
      OSError: the file cannot be written; what stood at `path` is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name beside `path` to write to, and renames it at the end: no reader ever sees half of it.

    Raises:
      OSError: the file cannot be written; what stood at `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    finally:
        temporary.unlink(missing_ok=True)
