"""Movies of uint8 frames: WebP and GIF, which loop, and MP4. One frame at a time is in memory, whatever the length."""

import itertools
import math
import struct
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from medgan_jax.errors import UserError, reason_of
from medgan_jax.files import replacing
from medgan_jax.images import convert_channels
from medgan_jax.provenance import SENTENCE, Provenance, xmp

if TYPE_CHECKING:
    from av import VideoFrame

SUFFIXES = (".webp", ".gif", ".mp4")

# By suffix: the encoder, its pixels, and its options. WebP has an encoder of whole movies too, but that leaves pixels
# as they were while they change slowly, which adds up. Of H.264 no other pixels are played everywhere; a constant rate
# factor of 18 is where its losses begin to be seen. Its mbtree would make other bytes of the same frames now and then.
_ENCODERS = {
    ".webp": ("libwebp", "bgra", {"quality": "80"}),
    ".gif": ("gif", "pal8", {}),
    ".mp4": ("libx264", "yuv420p", {"crf": "18", "x264-params": "mbtree=0"}),
}
_CONTAINER_OPTIONS = {
    ".webp": {"loop": "0"},  # without end, as GIF's default
    ".gif": {},
    ".mp4": {"movflags": "+faststart"},  # its index first, so that a browser shows it while it loads
}
_BT709 = 1  # in H.264's tables of primaries and matrices
_SRGB = 13  # in its table of transfer functions
_PALETTE_PIXELS = 20_000  # of a frame are enough to choose its colours by


def check_movie_path(path: Path) -> None:
    """Checks that a movie can be written there, before its frames are made; leaves nothing.

    Raises:
      UserError: the suffix is none of ours, or the place cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a movie is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; give such a name")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no file that could be replaced; give another name")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason_of(error)}); give another place") from error


def write_movie(
    path: Path, frames: Iterable[np.ndarray], *, frames_per_second: float, origin: Provenance | None = None
) -> None:
    """Writes a movie: whole, or not at all.

    WebP and MP4 lose detail that is hardly seen. GIF has 256 colours in each frame, chosen for that frame and not
    dithered: dots would flicker, and cost more than they hide. MP4 needs even sizes, so an odd frame's last row or
    column is repeated. The file is marked as synthetic.

    Args:
      path: a .webp, .gif or .mp4 file.
      frames: uint8, (H, W, 1 or 3), all of one shape; taken one by one.
      frames_per_second: GIF rounds the time of a frame to 1/100 s.
      origin: of the first frame, where all are of one generator; the file says it.

    Raises:
      UserError: there are no frames, they differ in shape, the path has another suffix, or it cannot be written. What
        stood there is as it was.
    """
    check_movie_path(path)
    import av  # slow to load, and needed by few commands
    from av.video.reformatter import ColorRange

    suffix = path.suffix.lower()
    encoder, pixels, options = _ENCODERS[suffix]
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UserError(f"{path}: there are no pictures to make a movie of")
    height, width = (size + (size % 2 if suffix == ".mp4" else 0) for size in first.shape[:2])
    try:
        with (
            replacing(path) as temporary,
            av.open(str(temporary), "w", format=suffix[1:], container_options=_CONTAINER_OPTIONS[suffix]) as container,
        ):
            container.metadata["comment"] = _comment(origin)
            stream: Any = container.add_stream(encoder, rate=Fraction(frames_per_second).limit_denominator(1000))
            stream.height, stream.width, stream.pix_fmt, stream.options = height, width, pixels, options
            if suffix == ".mp4":
                stream.color_range, stream.colorspace = ColorRange.MPEG, _BT709
                stream.color_primaries, stream.color_trc = _BT709, _SRGB
            for number, frame in enumerate(itertools.chain([first], frames)):
                if frame.shape != first.shape:
                    raise UserError(
                        f"{path}: picture {number} has the shape {frame.shape} and those before it {first.shape}; give "
                        "pictures of one size"
                    )
                container.mux(stream.encode(_converted(convert_channels(frame, 3), suffix, height, width)))
            container.mux(stream.encode())
            container.close()
            _mark(temporary, suffix, origin)
    except (av.error.FFmpegError, OSError) as error:
        remedy = "make room, give another place, or smaller pictures"
        reason = reason_of(error)  # type: ignore[arg-type]  # FFmpeg's have a strerror too
        raise UserError(f"{path}: cannot be written ({reason}); {remedy}") from error


def _comment(origin: Provenance | None) -> str:
    return f"{SENTENCE} {origin.as_json()}" if origin else SENTENCE


def _mark(path: Path, suffix: str, origin: Provenance | None) -> None:
    """Marks a WebP or GIF file as synthetic, which FFmpeg does not write into it; see `provenance`."""
    data = path.read_bytes()
    if suffix == ".gif":  # a comment extension between the header, with its table of colours, and the first frame
        text = _comment(origin).encode()
        parts = [text[i : i + 255] for i in range(0, len(text), 255)]
        blocks = b"".join(bytes([len(part)]) + part for part in parts)
        start = 13 + (3 * 2 ** (data[10] % 8 + 1) if data[10] & 0x80 else 0)
        path.write_bytes(data[:start] + b"\x21\xfe" + blocks + b"\0" + data[start:])
    elif suffix == ".webp":  # a chunk at the end, which the header announces
        text = xmp(origin).encode()
        chunk = b"XMP " + struct.pack("<I", len(text)) + text + bytes(len(text) % 2)
        header = bytearray(data[:21])
        header[20] |= 0x04
        header[4:8] = struct.pack("<I", len(data) + len(chunk) - 8)
        path.write_bytes(bytes(header) + data[21:] + chunk)


def _converted(frame: np.ndarray, suffix: str, height: int, width: int) -> "VideoFrame":
    """RGB (H, W, 3) as the encoder takes it."""
    from av import VideoFrame
    from av.video.reformatter import Colorspace

    if suffix == ".gif":
        return VideoFrame.from_ndarray(_palettized(frame), format="pal8")  # type: ignore[arg-type]
    padding = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
    converted = VideoFrame.from_ndarray(np.pad(frame, padding, "edge"), format="rgb24")
    if suffix == ".mp4":
        return converted.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
    return converted


def _palettized(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) to indices (H, W) and their colours (256, 4) as alpha, red, green and blue."""
    stride = max(1, math.isqrt(frame.shape[0] * frame.shape[1] // _PALETTE_PIXELS))
    sample = Image.fromarray(np.ascontiguousarray(frame[::stride, ::stride])).quantize(256)
    indices = Image.fromarray(frame).quantize(palette=sample, dither=Image.Dither.NONE)
    colours = np.array(sample.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.full((256, 4), 255, np.uint8)
    palette[: len(colours), 1:] = colours
    return np.asarray(indices), palette
