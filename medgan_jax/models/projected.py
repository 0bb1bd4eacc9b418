"""The discriminator of Projected GAN (Sauer et al. 2021, arXiv:2111.01007), which sees images through a frozen network.

Images are shown to EfficientNet-Lite0, frozen. Its activations at strides 4, 8, 16 and 32 are mixed across channels and
scales by random matrices, frozen too, so that no single feature decides. On each of the four maps a small discriminator
with spectral norm, the only part that is trained, gives logits at several places. It learns fast from few images what
lesions are made of; what tells single images apart it hardly sees.

The frozen part is a function, `project_images`, apart from the module: what it computes of an image serves the updates
of both networks, and it is in no checkpoint. Differences from the paper: maps are enlarged after they are mixed instead
of before, which is the same and cheaper; widths are smaller; images of less than 128 px are enlarged to that, instead
of to 256; and with classes, the last convolution of a small discriminator has a kernel for each, besides that of all.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.dcgan import INITIAL_KERNEL, LEAK
from medgan_jax.models.efficientnet_lite import EfficientNetLite, load_efficientnet_lite
from medgan_jax.models.projection import check_labels
from medgan_jax.models.spectral_norm import SpectralNorm
from medgan_jax.ops.winograd import downsampling_convolution

Logits = tuple[jax.Array, ...]  # of each small discriminator, (N, h, w)

FROZEN = "efficientnet-lite0"  # as checkpoints name it
_VARIANT = "lite0"
_TAPS = (24, 40, 112, 320)  # channels, at strides 4, 8, 16, 32
_WIDTHS = (32, 64, 128, 256)  # of the maps that they are mixed into
_SMALLEST, _LARGEST = 128, 256  # px, of the images that the frozen network is shown
_SEED = 0  # of the random matrices: one and the same projection for all trainings
_HEAD_SIZE = 8  # px, down to which a small discriminator halves its map
_LAST_KERNEL = 4  # px, of a side
_WIDEST = 256


@functools.cache
def load_frozen() -> dict[str, Any]:
    """The frozen arrays, numpy float32: those of `network`, and random matrices across `channels` and `scales`.

    Raises:
      UserError: the weights of EfficientNet-Lite0 are not installed as published.
    """
    random = np.random.default_rng(_SEED)

    def matrices(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> list[np.ndarray]:
        """That keep the mean square of what they are multiplied with."""
        shapes = zip(inputs, outputs, strict=True)
        return [random.normal(scale=i**-0.5, size=(i, o)).astype(np.float32) for i, o in shapes]

    return {
        "network": load_efficientnet_lite(_VARIANT),
        "channels": matrices(_TAPS, _WIDTHS),
        "scales": matrices(_WIDTHS, (_WIDTHS[0], *_WIDTHS[:-1])),
    }


def project_images(frozen: dict[str, Any], images: jax.Array) -> tuple[jax.Array, ...]:
    """What the small discriminators see of images.

    Args:
      frozen: what `load_frozen` returns.
      images: (N, H, H, 1 or 3) float, nominally in [-1, 1].

    Returns:
      Four maps, float32: at strides 4, 4, 8 and 16 of an image enlarged to 128 px, or reduced to 256, where it has less
      or more; of 32, 32, 64 and 128 channels.
    """
    number, size, _, channels = images.shape
    shown = _shown_size(size)
    if shown != size:
        images = jax.image.resize(images, (number, shown, shown, channels), "bilinear", antialias=True)
    activations: Any = EfficientNetLite(_VARIANT).apply(frozen["network"], images)
    mixed = [tap @ matrix for tap, matrix in zip(activations.taps, frozen["channels"], strict=True)]
    maps = [_doubled(mixed[-1] @ frozen["scales"][-1])]
    for scale in (2, 1):
        maps.insert(0, _doubled((mixed[scale] + maps[0]) @ frozen["scales"][scale]))
    maps.insert(0, (mixed[0] + maps[0]) @ frozen["scales"][0])
    return tuple(maps)


def _doubled(x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, 2 H, 2 W, C), bilinearly."""
    n, h, w, c = x.shape
    return jax.image.resize(x, (n, 2 * h, 2 * w, c), "bilinear")


def map_shapes(image_size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Of the maps of one image; needs no weights."""
    sides = [_shown_size(image_size) // stride for stride in (4, 4, 8, 16)]
    widths = (_WIDTHS[0], *_WIDTHS[:-1])
    return tuple(jax.ShapeDtypeStruct((1, s, s, c), jnp.float32) for s, c in zip(sides, widths, strict=True))


def _shown_size(image_size: int) -> int:
    return min(max(image_size, _SMALLEST), _LARGEST)


class _Convolution(nn.Module):
    """A 4x4 convolution with spectral norm, without bias: with stride 2, or the last one, without padding."""

    features: int
    is_last: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        kernel = self.param("kernel", INITIAL_KERNEL, (4, 4, x.shape[-1], self.features))
        x, weights = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.is_last:
            x = jax.lax.conv_general_dilated(x, weights, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        else:
            x = downsampling_convolution(x, weights)
        # Divides the output instead of the kernel, see `models.dcgan`.
        return (x / SpectralNorm(name="spectral_norm")(kernel, training=training)).astype(self.dtype)


class _Head(nn.Module):
    """The small discriminator of one map."""

    dtype: jnp.dtype
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array | None, *, training: bool) -> jax.Array:
        place = 0
        while x.shape[1] > _HEAD_SIZE:
            width = min(2 * x.shape[-1], _WIDEST)
            x = _Convolution(width, False, self.dtype, name=f"conv_{place}")(x, training=training)
            x = nn.leaky_relu(BatchNorm(name=f"norm_{place}")(x, training=training), LEAK)
            place += 1
        x = _Convolution(1 + self.num_classes, True, self.dtype, name=f"conv_{place}")(x, training=training)
        logits = x[..., 0].astype(jnp.float32)
        if labels is not None:  # a kernel for each class, besides that of all
            of_class = jnp.take_along_axis(x[..., 1:], labels[:, None, None, None], axis=-1)
            logits += of_class[..., 0].astype(jnp.float32)
        return logits


class ProjectedDiscriminator(nn.Module):
    """What `project_images` shows of images, to logits: positive means "real"."""

    image_size: int
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...], labels: jax.Array | None = None, *, training: bool) -> Logits:
        """Computes logits.

        Args:
          maps: of N images, see `project_images`.
          labels: (N,) int32 below `num_classes`, the class of each image; None where there are no classes.
          training: normalise by this batch's statistics, update the running ones and take one power iteration
            (`batch_stats` and `spectral` mutable).

        Returns:
          Of each of the four small discriminators, (N, h, w) float32 logits at h x w places.
        """
        check_labels(labels, self.num_classes)
        heads = [_Head(self.dtype, self.num_classes, name=f"head_{i}") for i in range(len(maps))]
        return tuple(head(x, labels, training=training) for head, x in zip(heads, maps, strict=True))
