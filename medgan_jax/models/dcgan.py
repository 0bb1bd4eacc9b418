"""The generator and the discriminator of DCGAN (Radford et al. 2016, arXiv:1511.06434), for every power-of-two size.

Layout NHWC; images are signed floats in [-1, 1]. Channels double as the resolution halves, down to 4x4. SNGAN is the
same pair with spectral normalisation on every convolution of the discriminator and its batch normalisation kept, as in
the system re-created. With classes, the generator's batch normalisation has a scale and a bias for each class, and the
discriminator's logit has a class-conditional projection (Miyato & Koyama 2018, arXiv:1802.05637). Layers are numbered
in order, `conv_0`, `norm_0`, `conv_1`, ..., so that a PyTorch `Sequential` maps onto them. `dtype` is what the
convolutions compute in; parameters, statistics, spectral norm, images and logits are float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.projection import Projection, check_labels
from medgan_jax.models.spectral_norm import SpectralNorm
from medgan_jax.ops.upsample import UPSAMPLING_SIZES, upsampling_kernel
from medgan_jax.ops.winograd import downsampling_convolution, upsampling_convolution

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


# Times the standard deviation of a 4x4 kernel: after an upsampling, outputs of a smaller kernel then vary as much.
_INITIAL_SCALE = {"transposed": 1, "nearest": 2 / 3, "bilinear": 4 / 3}


class _Convolution(nn.Module):
    """A 4x4 convolution: `kind` is "expand" (1x1 to 4x4), "up", "down", "collapse" (4x4 to 1x1); "pointwise" is 1x1."""

    kind: str
    features: int
    spectral_norm: bool = False
    dtype: jnp.dtype = jnp.float32
    upsample: str = "transposed"  # of kind "up", see `upsampling_kernel`
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        size = 1 if self.kind == "pointwise" else UPSAMPLING_SIZES[self.upsample]
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02 * _INITIAL_SCALE[self.upsample]), shape)
        weights = kernel if self.kind == "pointwise" else upsampling_kernel(kernel, self.upsample)
        x = self._convolve(x.astype(self.dtype), weights.astype(self.dtype))
        if self.spectral_norm:
            # The layer is linear: dividing its output by sigma is cheaper than dividing its kernel.
            x = (x / SpectralNorm(name="spectral_norm")(kernel, training=training)).astype(self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
            x += bias.astype(self.dtype).reshape(*[1] * (x.ndim - 1), -1)
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
            case "pointwise":
                return x @ kernel[0, 0]
        raise ValueError(f"unknown kind of convolution: {self.kind!r}")


class Generator(nn.Module):
    """Latent vectors to images."""

    image_size: int
    channels: int = 3
    features: int = 64
    dtype: jnp.dtype = jnp.float32
    upsample: str = "transposed"  # or "nearest", "bilinear": see `ops.upsample.upsampling_kernel`
    num_classes: int = 0
    bias: bool = False  # of the last layer, which no batch norm follows; this and `pointwise` are of others' networks
    pointwise: bool = False  # the last layer is 1x1, at full resolution

    @nn.compact
    def __call__(self, latents: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Generates images.

        Args:
          latents: (N, latent_dim) float.
          labels: (N,) int32 below `num_classes`, the class of each image; None where there are no classes.
          training: normalise by this batch's statistics and update the running ones (`batch_stats` mutable).

        Returns:
          (N, image_size, image_size, channels) float32 in [-1, 1].
        """
        check_labels(labels, self.num_classes)
        steps = doublings(self.image_size) + self.pointwise
        x = latents
        for i in range(steps + 1):
            width = self.features * 2 ** (steps - i)
            kind = "up" if i else "expand"
            upsample = self.upsample if i else "transposed"
            x = _Convolution(kind, width, dtype=self.dtype, upsample=upsample, name=f"conv_{i}")(x, training=training)
            x = nn.relu(BatchNorm(self.num_classes, name=f"norm_{i}")(x, labels, training=training))
        last = _Convolution(
            "pointwise" if self.pointwise else "up",
            self.channels,
            dtype=self.dtype,
            upsample=self.upsample,
            bias=self.bias,
            name=f"conv_{steps + 1}",
        )
        x = last(x, training=training)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images to one logit each: positive means "real". Take a sigmoid only where a score is shown."""

    image_size: int
    features: int = 64
    spectral_norm: bool = False
    dtype: jnp.dtype = jnp.float32
    batch_norm: bool = True
    dropout: float = 0.0  # rate of dropout on the input image
    num_classes: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Computes logits.

        Args:
          images: (N, image_size, image_size, C) float in [-1, 1].
          labels: (N,) int32 below `num_classes`, the class of each image; None where there are no classes.
          training: normalise by this batch's statistics, update the running ones and take one power iteration
            (`batch_stats` and `spectral` mutable). Dropout then needs the rng stream "dropout".

        Returns:
          (N,) float32 logits.
        """
        check_labels(labels, self.num_classes)
        steps = doublings(self.image_size)
        layer: dict[str, Any] = {"spectral_norm": self.spectral_norm, "dtype": self.dtype}
        x = nn.Dropout(self.dropout, deterministic=not training)(images)
        for i in range(steps + 1):
            x = _Convolution("down", self.features * 2**i, **layer, name=f"conv_{i}")(x, training=training)
            if i and self.batch_norm:  # the published networks do not normalise the layer that sees the image
                x = BatchNorm(name=f"norm_{i}")(x, training=training)
            x = nn.leaky_relu(x, LEAK)
        logits = _Convolution("collapse", 1, **layer, name=f"conv_{steps + 1}")(x, training=training)
        logits = logits[:, 0].astype(jnp.float32)
        if labels is not None:
            projection = Projection(
                self.num_classes, self.spectral_norm, INITIAL_KERNEL, name=f"projection_{steps + 1}"
            )
            logits += projection(x, labels, training=training)
        return logits
