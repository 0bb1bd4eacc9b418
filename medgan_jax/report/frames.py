"""The pictures of a training as frames: of a page that must stay small, and of a movie."""

import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from medgan_jax.html import inline
from medgan_jax.image_files import ImageError, decode_image

MAX_FRAMES = 200  # of a page
_BYTES = 13_500_000  # of all frames of a page; base64 makes 18 MB of them
_FEW = 50  # so many frames may be four times as large
_SIDE = 532  # px of a frame when there are many: 64 images of 64 px with their gaps, or 16 of 128 px
_GAP = 2  # px between the images of a grid, see images.image_grid
_FEWEST = 4  # images in a row at least, before they are made smaller
_QUALITIES = (80, 60, 40, 20)  # of WebP, tried in this order
_SMALL = 160  # px; a frame as small as that is kept exact
_CACHED = 512  # frames kept from one call to the next


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a frame is made of a picture.

    Attributes:
      cell: px of an image in the picture; 0: not known, the picture is kept whole.
      images: at most so many images in a row and in a column; the first ones are kept.
      shrink: each image is made smaller by this factor.
      side: px of a frame at most.
      max_bytes: of an encoded frame.
    """

    cell: int
    images: int
    shrink: int
    side: int
    max_bytes: int


@dataclasses.dataclass(frozen=True)
class Frame:
    """An encoded picture; `uri` is a data: URI."""

    step: int
    uri: str


def layout(num_frames: int, image_size: int) -> Layout:
    """How the frames of a page are made, so that they are few bytes and their images stay recognisable.

    Of `num_frames` only whether they are few matters, so that frames made before can be used again. `image_size` is
    that of an image in the grids, in px; 0 where it is not known.
    """
    few = num_frames <= _FEW
    side, max_bytes = (2 * _SIDE, _BYTES // _FEW) if few else (_SIDE, _BYTES // MAX_FRAMES)
    shrink, images = 1, 0
    if image_size:
        while (images := (side - _GAP) // (image_size // shrink + _GAP)) < _FEWEST:
            shrink *= 2
    return Layout(cell=image_size, images=images, shrink=shrink, side=side, max_bytes=max_bytes)


def thinned(steps: Sequence[int], limit: int = MAX_FRAMES) -> list[int]:
    """At most `limit` of `steps`, evenly, with the last one.

    Each one left out stays so as the training grows: every second, fourth, eighth one is kept.
    """
    stride = 1
    while len(range(0, len(steps), stride)) + 1 > limit and len(steps) > limit:
        stride *= 2
    return sorted({*steps[::stride], *steps[-1:]})


def movie_frames(pictures: dict[int, Path]) -> Iterator[np.ndarray]:
    """The pictures in their order, as uint8 (H, W, 3) of one shape: that of the last one.

    Pictures that cannot be read, or have another shape because num_sample_images was changed, are left out.
    """
    last = next((picture for path in reversed(pictures.values()) if (picture := _readable(path)) is not None), None)
    for path in pictures.values():
        picture = _readable(path)
        if picture is not None and last is not None and picture.shape == last.shape:
            yield picture


def page_frames(pictures: dict[int, Path], layout: Layout) -> tuple[list[Frame], dict[int, str]]:
    """The frames of a page in their order, and for each step whose picture cannot be read the reason.

    Pictures unchanged since an earlier call in this process cost nothing.
    """
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:  # Pillow works outside the GIL
        texts = workers.map(lambda path: encode_file(path, layout), pictures.values())
        encoded = dict(zip(pictures, texts, strict=True))
    frames = [Frame(step, each) for step, each in encoded.items() if each.startswith("data:")]
    return frames, {step: each for step, each in encoded.items() if not each.startswith("data:")}


def encode_file(path: Path, layout: Layout) -> str:
    """The data: URI of a picture, or the reason why there is none."""
    try:
        about = path.stat()
        return _encoded(path.absolute(), about.st_mtime_ns, about.st_size, layout)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or "cannot be read"


@functools.lru_cache(maxsize=_CACHED)
def _encoded(path: Path, mtime_ns: int, size: int, layout: Layout) -> str:
    """Keyed by time and size too, so that a picture that was replaced is read again."""
    image = _cropped(Image.fromarray(decode_image(path.read_bytes(), channels=3)), layout)
    data = _webp(image, lossless=True) if max(image.size) <= _SMALL else b""
    if not 0 < len(data) <= layout.max_bytes:
        for quality in _QUALITIES:
            data = _webp(image, quality=quality)
            if len(data) <= layout.max_bytes:
                break
        else:  # worse than noise
            image.thumbnail((layout.side // 2, layout.side // 2))
            data = _webp(image, quality=_QUALITIES[-1])
    return inline(data, "image/webp")


def _readable(path: Path) -> np.ndarray | None:
    try:
        return decode_image(path.read_bytes(), channels=3)
    except (ImageError, OSError):
        return None


def _cropped(image: Image.Image, layout: Layout) -> Image.Image:
    """The first images of a grid, smaller where the layout says so; a picture that is no such grid, scaled down."""
    pitch = layout.cell + _GAP
    if layout.cell and all(side > _GAP and (side - _GAP) % pitch == 0 for side in image.size):
        width, height = (min(side, layout.images * pitch + _GAP) for side in image.size)
        image = image.crop((0, 0, width, height))
        return image.reduce(layout.shrink)
    image.thumbnail((layout.side, layout.side))
    return image


def _webp(image: Image.Image, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format="webp", method=2, **options)
    return file.getvalue()
