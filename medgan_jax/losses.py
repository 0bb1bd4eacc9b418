"""Adversarial losses on logits, and the targets of the real images.

Binary cross-entropy, the generator's in its non-saturating form (Goodfellow et al. 2014, arXiv:1406.2661).
"""

import jax
import jax.numpy as jnp
import optax


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array, real_targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of the reals against their targets plus that of the fakes against 0; all (N,) -> ()."""
    real = optax.sigmoid_binary_cross_entropy(real_logits, real_targets)
    fake = optax.sigmoid_binary_cross_entropy(fake_logits, jnp.zeros_like(fake_logits))
    return jnp.mean(real) + jnp.mean(fake)


def generator_loss(fake_logits: jax.Array) -> jax.Array:
    """Mean cross-entropy of the fakes (N,) against 1: low when the discriminator takes them for real."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(fake_logits, jnp.ones_like(fake_logits)))


def real_targets(key: jax.Array, batch_size: int, *, real_label: float, label_flip: float) -> jax.Array:
    """What the discriminator is told about the real images.

    Args:
      key: decides which labels are flipped.
      batch_size: N.
      real_label: the target of a real image; 0.9 is one-sided label smoothing (Salimans et al. 2016, arXiv:1606.03498).
      label_flip: probability that a real image's target becomes 0. Each batch flips this share of its images, the
        fraction of an image being rounded up or down at random, so that small batches do not fluctuate.

    Returns:
      (N,) float32.
    """
    order_key, round_key = jax.random.split(key)
    flipped = jnp.floor(label_flip * batch_size + jax.random.uniform(round_key))
    rank = jax.random.permutation(order_key, batch_size)
    return jnp.where(rank < flipped, 0.0, real_label).astype(jnp.float32)
