"""Images as arrays: value ranges, resizing, grids, and PNG files of them.

Layout: (height, width, channels) for an image and NHWC for a batch; channels is 1 (grey) or 3 (RGB).
Range: "uint8", 0 to 255, in files and in the data path; "signed", float32 in [-1, 1], in the networks; "unit",
float32 in [0, 1], in the metrics. Only the functions of this module go from one range to another.
"""

import math
import os
import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from medgan_jax.files import replace_file

if TYPE_CHECKING:
    import jax

Array = TypeVar("Array", np.ndarray, "jax.Array")


def as_array(image: Image.Image, channels: int) -> np.ndarray:
    """uint8 (height, width, channels) of a picture of Pillow's; what is transparent is laid over black."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    pixels = np.asarray(image.convert({1: "L", 3: "RGB"}[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def convert_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts a uint8 (height, width, 1 or 3) image to grey (ITU-R 601 luma) or RGB."""
    return image if image.shape[2] == channels else as_array(_from_array(image), channels)


def _from_array(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def resize(image: np.ndarray, size: int, *, fit: str = "crop") -> np.ndarray:
    """Makes an image square, in one resampling. Where it gives other pixels than before, raise `image_files.VERSION`.

    Antialiased bicubic by Pillow: the resampling that scores of generated images are least misled by (Parmar
    et al. 2022, arXiv:2104.11222). Smaller images are enlarged.

    Args:
      image: uint8, (height, width, 1 or 3).
      size: height and width of the result.
      fit: "crop" takes the square in the centre; "pad" all of the image, in the centre of black, the background of most
        medical images; "stretch" all of it, out of proportion.

    Returns:
      uint8, of shape (size, size, channels).
    """
    height, width, channels = image.shape
    box, shape = (0.0, 0.0, float(width), float(height)), (size, size)
    if fit == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif fit == "pad":
        height, width = shape = tuple(max(1, round(size * side / max(height, width))) for side in (height, width))
    resized = _from_array(image).resize(shape[::-1], Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(resized).reshape(*shape, channels)
    above, left_of = ((size - side) // 2 for side in shape)
    below, right_of = size - shape[0] - above, size - shape[1] - left_of
    return np.pad(pixels, ((above, below), (left_of, right_of), (0, 0)))


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


def write_png(path: str | os.PathLike, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Writes a uint8 (height, width, 1 or 3) image as a PNG file, as `replace_file` does.

    The same image and text give the same bytes under one version of zlib.
    """
    replace_file(path, encode_png(image, text))


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """PNG (ISO/IEC 15948) of a uint8 image: each row less the one above, then run lengths and Huffman codes.

    `text` goes before the pixels, as international text by its keyword, see `provenance.png_text`.

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
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        *((b"iTXt", key.encode() + bytes(5) + value.encode()) for key, value in (text or {}).items()),
        (b"IDAT", packer.compress(filtered.data) + packer.flush()),
        (b"IEND", b""),
    ]
    checked = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)
