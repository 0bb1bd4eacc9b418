"""Random changes of images, differentiable, drawn anew for each image.

`mirror_at_random` enlarges a data set: reals alone are mirrored, so it must be one whose images have no left and right.
`augment` is for what the discriminator sees, reals and fakes alike, in the updates of both networks (Zhao et al. 2020,
arXiv:2006.10738): the discriminator cannot learn few images by heart, and as fakes are changed as reals are, the
generator learns images that are not. Images are (N, H, W, C) signed floats; what comes from beyond an edge is grey, 0.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import dm_pix as pix
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from medgan_jax.config import AugmentConfig


def mirror_at_random(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors each of (N, H, W, C) left-right with probability 1/2."""
    return _where(jax.random.bernoulli(key, 0.5, images.shape[:1]), pix.flip_left_right(images), images)


def augment(images: jax.Array, key: jax.Array, settings: "AugmentConfig", probability: jax.Array | float) -> jax.Array:
    """Changes each image by what `settings` switch on, in this order: flips, turns, colour, translation, cutout.

    Args:
      images: (N, H, W, C) in [-1, 1], H = W.
      key: decides.
      settings: which changes, and how strong.
      probability: of each change, for each image by itself; (), may be traced. A change that is not drawn leaves the
        image as it is, bit by bit.

    Returns:
      (N, H, W, C); colours may leave [-1, 1].
    """
    changes: list[tuple[bool | float, Callable[..., jax.Array], tuple[float, ...]]] = [
        (settings.flips, flips, ()),
        (settings.quarter_turns, quarter_turns, ()),
        (settings.color, color, (settings.color,)),
        (settings.translation, translation, (settings.translation,)),
        (settings.cutout, cutout, (settings.cutout,)),
    ]
    for i, (wanted, change, strength) in enumerate(changes):  # numbered, so that each draws the same with and without
        if wanted:
            change_key, gate_key = jax.random.split(jax.random.fold_in(key, i))
            drawn = jax.random.bernoulli(gate_key, probability, images.shape[:1])
            images = _where(drawn, change(images, change_key, *strength), images)
    return images


def flips(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors left-right with probability 1/2, and top-bottom with probability 1/2."""
    left_right, top_bottom = jax.random.bernoulli(key, 0.5, (2, len(images)))
    images = _where(left_right, pix.flip_left_right(images), images)
    return _where(top_bottom, pix.flip_up_down(images), images)


def quarter_turns(images: jax.Array, key: jax.Array) -> jax.Array:
    """Turns square images by 0, 90, 180 or 270 degrees, each as likely."""
    turns = jax.random.randint(key, (len(images),), 0, 4)
    return jnp.select([_each(turns == k) for k in range(4)], [pix.rot90(images, k) for k in range(4)])


def color(images: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    """Brightness plus -0.5 to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5, where `strength` is 1.

    dm-pix's contrast is about the mean of each channel, the published one about the mean of all. dm-pix's saturation is
    that of HSV, clipped, whose gradient has jumps; the published one, the distance to the mean of the channels, is not.
    """
    brightness, saturation, contrast = strength * jax.random.uniform(key, (3, len(images)), minval=-0.5, maxval=0.5)
    images = pix.adjust_brightness(images, _each(brightness))
    grey = jnp.mean(images, axis=-1, keepdims=True)
    images = grey + _each(1 + 2 * saturation) * (images - grey)
    return pix.adjust_contrast(images, _each(1 + contrast))


def translation(images: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Shifts by whole pixels along both axes, each up to `share` of the side, either way."""
    side = images.shape[1]
    reach = round(share * side)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows, columns = jax.random.randint(key, (2, len(images)), 0, 2 * reach + 1)

    def window(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])

    return jax.vmap(window)(padded, rows, columns)


def cutout(images: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Hides a square whose side is `share` of the image's, its centre anywhere in the image."""
    side = images.shape[1]
    size = round(share * side)
    first = jax.random.randint(key, (2, len(images), 1), 0, side + 1) - size // 2
    place = jnp.arange(side)[None, None]
    rows, columns = (place >= first) & (place < first + size)
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, images)


def _where(drawn: jax.Array, changed: jax.Array, images: jax.Array) -> jax.Array:
    return jnp.where(_each(drawn), changed, images)


def _each(values: jax.Array) -> jax.Array:
    """(N,) to (N, 1, 1, 1)."""
    return values[:, None, None, None]
