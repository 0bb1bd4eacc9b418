"""FastGAN's generator (Liu et al. 2021, arXiv:2101.04775), for every power of two from 32 to 512 px.

Made for few images and little computing: blocks of one or two convolutions with gated linear units, and skip-layer
excitation, by which a map of low resolution scales the channels of one 16 times as large. Layout, value ranges, `dtype`
and classes are those of `models.dcgan`. Latents are first scaled to unit mean square, as in Projected GAN (Sauer et al.
2021, arXiv:2111.01007). The noise that is added to each map, for textures that do not repeat at the same places, is a
fixed random linear function of the latents: so an image depends on them alone, and changes little where they do. Left
out is spectral norm, to which batch normalisation is blind. A name's number is the layer's place.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.dcgan import BASE_SIZE, INITIAL_KERNEL
from medgan_jax.models.projection import check_labels
from medgan_jax.ops.upsample import linear

# Channels at each resolution, as multiples of `features`.
_WIDTHS = {4: 16.0, 8: 8.0, 16: 4.0, 32: 2.0, 64: 2.0, 128: 1.0, 256: 0.5, 512: 0.25}
_TWO_CONVOLUTIONS = (8, 32, 128, 512)  # px; in the blocks of the resolutions between there is one
_EXCITED_BY = {64: 4, 128: 8, 256: 16, 512: 32}  # px, of the map that scales the channels of each
_POOLED = 4  # px, of that map when it does


class _Layer(nn.Module):
    """A linear layer without bias, of a kind of `ops.upsample.linear`."""

    kind: str
    features: int
    initializer: nn.initializers.Initializer
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = () if self.kind == "dense" else (3, 3)
        kernel = self.param("kernel", self.initializer, (*size, x.shape[-1], self.features))
        return linear(x.astype(self.dtype), kernel, self.kind)


@jax.custom_vjp
def _gated(x: jax.Array) -> jax.Array:
    """The gated linear unit (Dauphin et al. 2017, arXiv:1612.08083) of (..., 2 C): (..., C)."""
    values, gates = jnp.split(x, 2, axis=-1)
    return values * nn.sigmoid(gates)


def _gated_backward(x: jax.Array, y: jax.Array) -> tuple[jax.Array]:
    """Keeps the input alone: on a CPU, to compute the sigmoid again is faster than to store it."""
    values, gates = jnp.split(x, 2, axis=-1)
    shares = nn.sigmoid(gates)
    return (jnp.concatenate([y * shares, y * values * shares * (1 - shares)], axis=-1),)


_gated.defvjp(lambda x: (_gated(x), x), _gated_backward)


class _Noise(nn.Module):
    """Adds noise to a map (N, H, W, C), the same to all channels, times a strength that is learnt.

    It is nearly normal, and as good as independent between pixels: each is a random direction's share in the latents.
    The components of a direction are 1 or -1, which are drawn fast.
    """

    seed: int

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array) -> jax.Array:
        strength = self.param("strength", nn.initializers.zeros, ())
        # Behind the barrier, as the compiler would compute the directions itself, slowly, and store them.
        key = jax.lax.optimization_barrier(jax.random.key(self.seed))
        length, pixels = latents.shape[-1], x.shape[1] * x.shape[2]
        words = jax.random.bits(key, (-(-length // 32), 1, pixels))  # each of 32 components
        places = jnp.arange(32, dtype=jnp.uint32)[None, :, None]
        signs = jnp.float32(words >> places & 1).reshape(-1, pixels)[:length]
        directions = (1 - 2 * signs) * length**-0.5
        noise = (latents @ directions).reshape(*x.shape[:3], 1)
        return x + (strength * noise).astype(x.dtype)


class _Block(nn.Module):
    """Doubles the resolution; once or twice: convolution, noise, batch norm, gate."""

    features: int
    convolutions: int
    dtype: jnp.dtype
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array, labels: jax.Array | None, *, training: bool) -> jax.Array:
        for i in range(self.convolutions):
            kind = "same" if i else "up"
            x = _Layer(kind, 2 * self.features, nn.initializers.he_normal(), self.dtype, name=f"conv_{i}")(x)
            x = _Noise(i + 2 * x.shape[1], name=f"noise_{i}")(x, latents)
            x = _gated(BatchNorm(self.num_classes, name=f"norm_{i}")(x, labels, training=training))
        return x


class _Excitation(nn.Module):
    """Scales each channel of a map (N, H, W, C) by 0 to 1, a function of a map of lower resolution."""

    @nn.compact
    def __call__(self, x: jax.Array, low: jax.Array) -> jax.Array:
        n, h, w, c = low.shape
        pooled = low.astype(jnp.float32).reshape(n, _POOLED, h // _POOLED, _POOLED, w // _POOLED, c).mean((2, 4))
        inner, outer = (_Layer("dense", x.shape[-1], nn.initializers.lecun_normal(), name=f"dense_{i}") for i in (0, 1))
        scales = nn.sigmoid(outer(nn.swish(inner(pooled.reshape(n, -1)))))
        return x * scales.astype(x.dtype)[:, None, None]


class FastGANGenerator(nn.Module):
    """Latent vectors to images."""

    image_size: int
    channels: int = 3
    features: int = 32
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, latents: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Generates images; arguments and result are those of `models.dcgan.Generator`."""
        check_labels(labels, self.num_classes)
        if self.image_size not in _WIDTHS or self.image_size < 32:
            raise ValueError(f"image_size must be a power of two from 32 to {max(_WIDTHS)}, not {self.image_size}")

        def width(size: int) -> int:
            return max(round(_WIDTHS[size] * self.features), 1)

        latents *= jax.lax.rsqrt(jnp.mean(jnp.square(latents), axis=-1, keepdims=True) + 1e-8)
        size, place = BASE_SIZE, 0
        x = _Layer("dense", 2 * width(size) * size**2, INITIAL_KERNEL, self.dtype, name="dense_0")(latents)
        x = BatchNorm(self.num_classes, name="norm_0")(x.reshape(len(x), size, size, -1), labels, training=training)
        maps = {size: _gated(x)}
        while size < self.image_size:
            size, place = 2 * size, place + 1
            convolutions = 2 if size in _TWO_CONVOLUTIONS else 1
            block = _Block(width(size), convolutions, self.dtype, self.num_classes, name=f"block_{place}")
            maps[size] = block(maps[size // 2], latents, labels, training=training)
            if size in _EXCITED_BY:
                maps[size] = _Excitation(name=f"excitation_{place}")(maps[size], maps[_EXCITED_BY[size]])
        x = _Layer("same", self.channels, INITIAL_KERNEL, self.dtype, name=f"conv_{place + 1}")(maps[size])
        return jnp.tanh(x.astype(jnp.float32))
