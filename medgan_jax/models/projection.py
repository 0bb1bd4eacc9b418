"""The discriminator's class-conditional projection (Miyato & Koyama 2018, arXiv:1802.05637)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from medgan_jax.models.spectral_norm import SpectralNorm


def check_labels(labels: jax.Array | None, num_classes: int) -> None:
    """Raises ValueError where there are classes and no labels, or labels and no classes."""
    if num_classes and labels is None:
        raise ValueError(f"a network of {num_classes} classes needs labels")
    if not num_classes and labels is not None:
        raise ValueError("an unconditional network takes no labels")


class Projection(nn.Module):
    """The part of a logit that depends on the class: the class's vector times the features summed over positions.

    The vectors are the rows of `kernel` (num_classes, C): a linear layer whose input is the class, one-hot.
    """

    num_classes: int
    spectral_norm: bool
    initializer: nn.initializers.Initializer

    @nn.compact
    def __call__(self, features: jax.Array, labels: jax.Array, *, training: bool) -> jax.Array:
        """Computes the class-conditional part of each logit.

        Args:
          features: (N, H, W, C) float.
          labels: (N,) int32 below `num_classes`.
          training: with spectral norm, take a power iteration (`spectral` mutable).

        Returns:
          (N,) float32.
        """
        kernel = self.param("kernel", self.initializer, (self.num_classes, features.shape[-1]))
        sums = jnp.sum(features.astype(jnp.float32), axis=(1, 2))
        products = jnp.sum(kernel[labels] * sums, axis=-1)
        if self.spectral_norm:
            products /= SpectralNorm(name="spectral_norm")(kernel, training=training)
        return products
