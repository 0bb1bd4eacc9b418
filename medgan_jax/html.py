"""What the HTML pages share: templates that escape what they are given, and files as inline addresses."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medgan_jax.images import encode_png, image_grid

if TYPE_CHECKING:
    import jinja2


def environment(folder: Path, **options: Any) -> "jinja2.Environment":
    """Of the templates in a folder; values are escaped, and missing ones are an error.

    Args:
      folder: of the package that they belong to.
      **options: further ones of `jinja2.Environment`.
    """
    import jinja2  # slow, and needed where a page is written

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def inline(data: bytes, kind: str) -> str:
    """A file as an address of its own, for a page that needs no other file; `kind` is its media type: "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def inline_grid(images: np.ndarray, columns: int | None = None) -> str:
    """A grid of images, uint8 (N, H, W, C), as the address of an inline PNG; see `image_grid`."""
    return inline(encode_png(image_grid(images, columns=columns)), "image/png")
