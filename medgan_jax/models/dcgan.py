"""The generator and the discriminator of DCGAN (Radford et al. 2016, arXiv:1511.06434), for every power-of-two size.

Layout NHWC; images are signed floats in [-1, 1]. Channels double as the resolution halves, down to 4x4. SNGAN is the
same pair with spectral normalisation on every convolution of the discriminator and its batch normalisation kept, as in
the system re-created. With classes, the generator's batch normalisation has a scale and a bias for each, and the
discriminator judges an image as one of its class (Miyato & Koyama 2018, arXiv:1802.05637). Layers are numbered as they
come, `conv_0`, `norm_0`, `conv_1`, ..., so that a PyTorch `Sequential` maps onto them in order. `dtype` is what the
convolutions compute in; parameters, statistics, spectral norm, images and logits are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.classes import Projection, check_labels
from medgan_jax.models.spectral_norm import SpectralNorm, divide
from medgan_jax.ops.winograd import (
    UPSAMPLING_SIZES,
    downsampling_convolution,
    upsampling_convolution,
    upsampling_kernel,
)

BASE_SIZE = 4  # the resolution of the generator's first and the discriminator's last feature maps
LEAK = 0.2
INITIAL_KERNEL = nn.initializers.normal(0.02)


def doublings(image_size: int) -> int:
    """How often the channels double between the image and the 4x4 maps: 3 at 64 px.

    Raises:
      ValueError: image_size is not a power of two of at least 16.
    """
    if image_size < 16 or image_size & (image_size - 1):
        raise ValueError(f"image_size must be a power of two of at least 16, not {image_size}")
    return image_size.bit_length() - 4


# Of what is drawn for a 4x4 kernel: outputs vary as much where what is learnt is a smaller one, after an enlargement.
_INITIAL_SCALE = {"transposed": 1, "nearest": 2 / 3, "bilinear": 4 / 3}


class _Convolution(nn.Module):
    """A bias-free 4x4 convolution: `kind` is "expand" (1x1 to 4x4), "up", "down" or "collapse" (4x4 to 1x1)."""

    kind: str
    features: int
    spectral_norm: bool = False
    dtype: jnp.dtype = jnp.float32
    upsample: str = "transposed"  # of kind "up", see `upsampling_kernel`

    @nn.compact
    def __call__(self, x: jax.Array, *, training: bool, batches: int = 1) -> jax.Array:
        """Convolves `x` (N * batches, ...), whose rows take turns: one of each batch, and again."""
        size = UPSAMPLING_SIZES[self.upsample]
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02 * _INITIAL_SCALE[self.upsample]), shape)
        weights = upsampling_kernel(kernel, self.upsample)
        x = self._convolve(x.astype(self.dtype), weights.astype(self.dtype))
        if self.spectral_norm:
            sigma = SpectralNorm(name="spectral_norm")(kernel, training=training, batches=batches)
            x = divide(x, sigma)
        return x

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        match self.kind:
            case "expand":
                return jnp.einsum("nc,hwcf->nhwf", x, kernel)
            case "up":
                return upsampling_convolution(x, kernel)
            case "down":
                return downsampling_convolution(x, kernel)
            case "collapse":
                return jnp.einsum("nhwc,hwcf->nf", x, kernel)
        raise ValueError(f"unknown kind of convolution: {self.kind!r}")


class Generator(nn.Module):
    """Latent vectors to images."""

    image_size: int
    channels: int = 3
    features: int = 64
    dtype: jnp.dtype = jnp.float32
    upsample: str = "transposed"  # or "nearest", "bilinear": see `convolution.upsampling_kernel`
    num_classes: int = 0

    @nn.compact
    def __call__(self, latents: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Generates.

        Args:
          latents: (N, latent_dim) float.
          labels: (N,) int32 below `num_classes`, the class of each image; None where there are no classes.
          training: normalise by this batch's statistics and update the running ones (`batch_stats` mutable).

        Returns:
          (N, image_size, image_size, channels) float32 in [-1, 1].
        """
        check_labels(labels, self.num_classes)
        steps = doublings(self.image_size)
        x = latents
        for i in range(steps + 1):
            width = self.features * 2 ** (steps - i)
            kind = "up" if i else "expand"
            how = {"upsample": self.upsample} if i else {}
            x = _Convolution(kind, width, dtype=self.dtype, **how, name=f"conv_{i}")(x, training=training)
            x = nn.relu(BatchNorm(self.num_classes, name=f"norm_{i}")(x, labels, training=training))
        last = _Convolution("up", self.channels, dtype=self.dtype, upsample=self.upsample, name=f"conv_{steps + 1}")
        x = last(x, training=training)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images to one logit each: positive means "real". Take a sigmoid only where a score is shown."""

    image_size: int
    features: int = 64
    spectral_norm: bool = False
    dtype: jnp.dtype = jnp.float32
    batch_norm: bool = True
    dropout: float = 0.0  # share of the input's values set to 0 in training, the others scaled up to make up for it
    num_classes: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Judges.

        Args:
          images: (N, image_size, image_size, C) float in [-1, 1]; or (N, B, image_size, image_size, C), B batches that
            are judged as if one after the other, at less cost.
          labels: (N,) or (N, B) int32 below `num_classes`, the class of each image; None where there are no classes.
          training: normalise by each batch's statistics, update the running ones and take one power iteration
            (`batch_stats` and `spectral` mutable). With dropout this needs the random numbers "dropout".

        Returns:
          (N,) float32 logits; or (N, B).
        """
        check_labels(labels, self.num_classes)
        steps = doublings(self.image_size)
        layer = {"spectral_norm": self.spectral_norm, "dtype": self.dtype}
        shape = images.shape[:-3]
        batches = shape[1] if len(shape) == 2 else 1
        how = {"training": training, "batches": batches}
        x = nn.Dropout(self.dropout, deterministic=not training)(images.reshape(-1, *images.shape[-3:]))
        for i in range(steps + 1):
            x = _Convolution("down", self.features * 2**i, **layer, name=f"conv_{i}")(x, **how)
            if i and self.batch_norm:  # the published networks do not normalise the layer that sees the image
                x = BatchNorm(name=f"norm_{i}")(x, **how)
            x = nn.leaky_relu(x, LEAK)
        logits = _Convolution("collapse", 1, **layer, name=f"conv_{steps + 1}")(x, **how).astype(jnp.float32)
        if self.num_classes:
            projection = Projection(
                self.num_classes, self.spectral_norm, INITIAL_KERNEL, name=f"projection_{steps + 1}"
            )
            logits += projection(x, labels, **how)[:, None]
        return logits.reshape(shape)
