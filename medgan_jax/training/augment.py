"""Differentiable random augmentation, drawn anew for each image.

Images are (N, H, W, C) floats in [-1, 1]; pixels from beyond an edge are grey, 0.

- `mirror_at_random` enlarges a data set, and so do `flips` and `quarter_turns` where they are given the reals alone.
  The generator learns such images too, so all orientations must be alike.
- `augment` changes what the discriminator sees, reals and fakes alike, in the updates of both networks (Zhao et al.
  2020, arXiv:2006.10738). The discriminator then cannot memorize few images, and the generator still learns images
  without these changes.
"""

from collections.abc import Callable

import dm_pix as pix
import jax
import jax.numpy as jnp

from medgan_jax.config import AugmentConfig


def mirror_at_random(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors each of (N, H, W, C) left-right with probability 1/2."""
    return _select(jax.random.bernoulli(key, 0.5, images.shape[:1]), pix.flip_left_right(images), images)


def augment(images: jax.Array, key: jax.Array, settings: AugmentConfig, probability: jax.Array | float) -> jax.Array:
    """Applies the transforms that `settings` turn on, in this order: flips, quarter turns, color, translation, cutout.

    Args:
      images: (N, H, W, C) in [-1, 1], H = W.
      key: decides which images are changed, and how.
      settings: the transforms and their strengths.
      probability: of each transform, for each image on its own; (), may be traced. An image for which a transform is
        not drawn keeps its values exactly.

    Returns:
      (N, H, W, C); color may leave [-1, 1].
    """
    transforms: list[tuple[bool | float, Callable[..., jax.Array], tuple[float, ...]]] = [
        (settings.flips, flips, ()),
        (settings.quarter_turns, quarter_turns, ()),
        (settings.color, color, (settings.color,)),
        (settings.translation, translation, (settings.translation,)),
        (settings.cutout, cutout, (settings.cutout,)),
    ]
    for i, (is_on, transform, strength) in enumerate(transforms):  # i: each draws the same whichever others are on
        if is_on:
            transform_key, drawn_key = jax.random.split(jax.random.fold_in(key, i))
            drawn = jax.random.bernoulli(drawn_key, probability, images.shape[:1])
            images = _select(drawn, transform(images, transform_key, *strength), images)
    return images


def flips(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors left-right with probability 1/2, and top-bottom with probability 1/2."""
    left_right, top_bottom = jax.random.bernoulli(key, 0.5, (2, len(images)))
    images = _select(left_right, pix.flip_left_right(images), images)
    return _select(top_bottom, pix.flip_up_down(images), images)


def quarter_turns(images: jax.Array, key: jax.Array) -> jax.Array:
    """Turns square images by 0, 90, 180 or 270 degrees, each as likely."""
    turns = jax.random.randint(key, (len(images),), 0, 4)
    return jnp.select([_per_image(turns == k) for k in range(4)], [pix.rot90(images, k) for k in range(4)])


def color(images: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    """Adds -0.5 to 0.5 (brightness), then scales saturation by 0 to 2 and contrast by 0.5 to 1.5, at strength 1.

    Contrast is dm-pix's, about the mean of each channel; the published one is about the mean of all. Saturation is the
    published one, the distance to the mean of the channels; dm-pix's clips in HSV, and its gradient has jumps.
    """
    brightness, saturation, contrast = strength * jax.random.uniform(key, (3, len(images)), minval=-0.5, maxval=0.5)
    images = pix.adjust_brightness(images, _per_image(brightness))
    channels = jnp.split(images, images.shape[-1], axis=-1)
    grey = sum(channels) / len(channels)  # on a CPU faster than the mean of the last axis
    images = grey + _per_image(1 + 2 * saturation) * (images - grey)
    return pix.adjust_contrast(images, _per_image(1 + contrast))


def translation(images: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Shifts by whole pixels along both axes, by up to `share` of the side in either direction."""
    side = images.shape[1]
    reach = round(share * side)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows, columns = jax.random.randint(key, (2, len(images)), 0, 2 * reach + 1)

    def window(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])

    return jax.vmap(window)(padded, rows, columns)


def cutout(images: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Sets a square to grey; its side is `share` of the image's, its centre anywhere in the image."""
    side = images.shape[1]
    size = round(share * side)
    first = jax.random.randint(key, (2, len(images), 1), 0, side + 1) - size // 2
    place = jnp.arange(side)[None, None]
    rows, columns = (place >= first) & (place < first + size)
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, images)


def _select(drawn: jax.Array, changed: jax.Array, images: jax.Array) -> jax.Array:
    """`changed` where `drawn` (N,), else `images`."""
    return jnp.where(_per_image(drawn), changed, images)


def _per_image(values: jax.Array) -> jax.Array:
    """(N,) to (N, 1, 1, 1)."""
    return values[:, None, None, None]
