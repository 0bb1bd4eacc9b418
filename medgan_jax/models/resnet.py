"""The residual SNGAN of Miyato et al. 2018 (arXiv:1802.05957, appendix B.4), for every power of two from 32 to 256 px.

Layout, value ranges and `dtype` are those of `models.dcgan`. Channels double as the resolution halves, down to 4x4, up
to 16 times the number at the image's resolution. At 128 px this is the paper's network. At 32 px the generator is the
paper's one for 48 px, but starts from 4x4 instead of 6x6; the discriminator has one block less. All layers have biases.
Every layer of the discriminator has spectral norm; its bias is added after the division. Initial weights are Glorot &
Bengio's uniform ones, times the root of two within residual branches. With classes, see `models.projection` and
`BatchNorm`. A name's number is the layer's place.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.projection import Projection, check_labels
from medgan_jax.models.spectral_norm import SpectralNorm
from medgan_jax.ops.upsample import linear

BASE_SIZE = 4
_SIZES = (32, 64, 128, 256)
_WIDEST = 16  # times the features at the image's resolution


def _widths(image_size: int, features: int) -> list[int]:
    """Channels from the image's resolution to 4x4."""
    if image_size not in _SIZES:
        raise ValueError(f"image_size must be a power of two from {_SIZES[0]} to {_SIZES[-1]}, not {image_size}")
    return [features * min(2**i, _WIDEST) for i in range((image_size // BASE_SIZE).bit_length())]


def _glorot(gain: float) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


class _Layer(nn.Module):
    """A linear layer with a bias, of a kind of `ops.upsample.linear`."""

    kind: str
    features: int
    gain: float = 1.0  # of the initial weights
    spectral_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        size = () if self.kind == "dense" else (3, 3)
        kernel = self.param("kernel", _glorot(self.gain), (*size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = linear(x.astype(self.dtype), kernel, self.kind)
        if self.spectral_norm:  # divides the output instead of the kernel, see `models.dcgan`
            x = (x / SpectralNorm(name="spectral_norm")(kernel, training=training)).astype(self.dtype)
        return x + bias.astype(self.dtype).reshape(*[1] * (x.ndim - 1), -1)


class GeneratorBlock(nn.Module):
    """A residual block that doubles the resolution."""

    features: int
    dtype: jnp.dtype
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array | None, *, training: bool) -> jax.Array:
        """Batch norm, convolution at twice the resolution, batch norm, convolution; plus a 1x1 shortcut."""
        # A 1x1 convolution does not see whether pixels are repeated before or after it.
        shortcut = _Layer("dense", self.features, dtype=self.dtype, name="shortcut")(x, training=training)
        for i, kind in enumerate(("up", "same")):
            x = nn.relu(BatchNorm(self.num_classes, name=f"norm_{i}")(x, labels, training=training))
            layer = _Layer(kind, self.features, math.sqrt(2), dtype=self.dtype, name=f"conv_{i}")
            x = layer(x, training=training)
        return x + _repeated(shortcut)


class DiscriminatorBlock(nn.Module):
    """A residual block that halves the resolution, unless it is the last one."""

    features: int
    dtype: jnp.dtype
    first: bool
    last: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        """Two convolutions; plus a shortcut."""
        options: dict[str, Any] = {"spectral_norm": True, "dtype": self.dtype}
        shortcut = x if self.last else _averaged(x)
        if not self.last or x.shape[-1] != self.features:
            shortcut = _Layer("dense", self.features, **options, name="shortcut")(shortcut, training=training)
        inner = self.features if self.first else x.shape[-1]  # the paper's own code has it so
        x = x if self.first else nn.relu(x)  # the first block sees the image, which is not to be cut at zero
        x = nn.relu(_Layer("same", inner, math.sqrt(2), **options, name="conv_0")(x, training=training))
        kind = "same" if self.last else "down"
        x = _Layer(kind, self.features, math.sqrt(2), **options, name="conv_1")(x, training=training)
        return x + shortcut


def _repeated(x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, 2 H, 2 W, C)."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def _averaged(x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, H / 2, W / 2, C)."""
    n, h, w, c = x.shape
    return jnp.mean(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))


class ResidualGenerator(nn.Module):
    """Latent vectors to images."""

    image_size: int
    channels: int = 3
    features: int = 64
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, latents: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Generates images; arguments and result are those of `models.dcgan.Generator`."""
        check_labels(labels, self.num_classes)
        *widths, widest = _widths(self.image_size, self.features)
        x = _Layer("dense", BASE_SIZE**2 * widest, dtype=self.dtype, name="dense_0")(latents, training=training)
        x = x.reshape(-1, BASE_SIZE, BASE_SIZE, widest)
        for i, width in enumerate(reversed(widths), 1):
            block = GeneratorBlock(width, self.dtype, self.num_classes, name=f"block_{i}")
            x = block(x, labels, training=training)
        last = len(widths) + 1
        x = nn.relu(BatchNorm(self.num_classes, name=f"norm_{last}")(x, labels, training=training))
        x = _Layer("same", self.channels, dtype=self.dtype, name=f"conv_{last}")(x, training=training)
        return jnp.tanh(x.astype(jnp.float32))


class ResidualDiscriminator(nn.Module):
    """Images to one logit each: positive means "real". Spectral norm on every layer, no batch normalisation."""

    image_size: int
    features: int = 64
    dtype: jnp.dtype = jnp.float32
    dropout: float = 0.0  # as in `models.dcgan.Discriminator`
    num_classes: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Computes logits; as `models.dcgan.Discriminator`, but only `spectral` must be mutable."""
        check_labels(labels, self.num_classes)
        widths = _widths(self.image_size, self.features)
        x = nn.Dropout(self.dropout, deterministic=not training)(images).astype(self.dtype)
        last = len(widths) - 1
        for i, width in enumerate(widths):
            block = DiscriminatorBlock(width, self.dtype, first=i == 0, last=i == last, name=f"block_{i}")
            x = block(x, training=training)
        x = nn.relu(x)
        sums = jnp.sum(x.astype(jnp.float32), axis=(1, 2))
        logits = _Layer("dense", 1, spectral_norm=True, name=f"dense_{last + 1}")(sums, training=training)[:, 0]
        if labels is not None:
            projection = Projection(self.num_classes, True, _glorot(1), name=f"projection_{last + 1}")
            logits += projection(x, labels, training=training)
        return logits
