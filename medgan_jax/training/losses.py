"""Adversarial losses on logits, and the targets of the real images.

- "bce": binary cross-entropy, the generator's in its non-saturating form (Goodfellow et al. 2014, arXiv:1406.2661).
- "hinge": only logits within the margin of 1 teach the discriminator (Lim & Ye 2017, arXiv:1705.02894).
- "wgan-gp": the difference of the mean logits (Arjovsky et al. 2017, arXiv:1701.07875), to which the training adds
  `gradient_penalty`.

Two penalties on the discriminator go with any of them, `r1_penalty` and `lecam_penalty`, and one on the generator,
`checkerboard_penalty`.

Logits are (N,) or, of a discriminator with several outputs, a tuple of arrays (N, ...). Losses and penalties are then
the mean over the outputs, each of which counts as much, so that their values mean the same.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medgan_jax.metrics.distribution.checkerboard import spectral_power
from medgan_jax.metrics.paired.filters import luminance

Logits = jax.Array | tuple[jax.Array, ...]


def discriminator_loss(real_logits: Logits, fake_logits: Logits, real_targets: jax.Array, *, loss: str) -> jax.Array:
    """The discriminator's loss, ().

    Args:
      real_logits: of the reals.
      fake_logits: of the fakes.
      real_targets: (N,), the target of each real, for "bce"; the target of a fake is 0.
      loss: "bce", "hinge" or "wgan-gp".
    """
    pairs = zip(_outputs(real_logits), _outputs(fake_logits), strict=True)
    return _mean([_discriminator_loss(real, fake, real_targets, loss) for real, fake in pairs])


def _discriminator_loss(
    real_logits: jax.Array, fake_logits: jax.Array, real_targets: jax.Array, loss: str
) -> jax.Array:
    real_targets = real_targets.reshape(-1, *[1] * (real_logits.ndim - 1))
    match loss:
        case "bce":
            real = optax.sigmoid_binary_cross_entropy(real_logits, real_targets)
            fake = optax.sigmoid_binary_cross_entropy(fake_logits, jnp.zeros_like(fake_logits))
        case "hinge":
            real, fake = jax.nn.relu(1 - real_logits), jax.nn.relu(1 + fake_logits)
        case "wgan-gp":
            real, fake = -real_logits, fake_logits
        case _:
            raise ValueError(f"unknown loss: {loss!r}")
    return jnp.mean(real) + jnp.mean(fake)


def generator_loss(fake_logits: Logits, *, loss: str) -> jax.Array:
    """The generator's loss, (), low when the discriminator takes the fakes for real."""
    return _mean([_generator_loss(x, loss) for x in _outputs(fake_logits)])


def _generator_loss(fake_logits: jax.Array, loss: str) -> jax.Array:
    if loss == "bce":
        return jnp.mean(optax.sigmoid_binary_cross_entropy(fake_logits, jnp.ones_like(fake_logits)))
    return -jnp.mean(fake_logits)


def mean_over_outputs(logits: Logits) -> jax.Array:
    """The mean logit of each image, (N,), each output counting as much."""
    return _mean([jnp.mean(x, axis=tuple(range(1, x.ndim))) for x in _outputs(logits)])


def _outputs(logits: Logits) -> tuple[jax.Array, ...]:
    return logits if isinstance(logits, tuple) else (logits,)


def _mean(terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms) / len(terms)


def gradient_penalty(
    critic: Callable[[jax.Array], Logits], reals: jax.Array, fakes: jax.Array, key: jax.Array
) -> jax.Array:
    """The gradient penalty of WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028).

    Args:
      critic: images (N, H, W, C) to logits (N,), each of its own image alone.
      reals: (N, H, W, C).
      fakes: the same shape; each is paired with one of the reals.
      key: decides the point between the two of a pair.

    Returns:
      The mean of (norm of the logit's gradient with respect to the image - 1) squared, ().
    """
    share = jax.random.uniform(key, (reals.shape[0], 1, 1, 1))
    squares = _squared_gradient_norms(critic, share * reals + (1 - share) * fakes)
    norms = jnp.sqrt(jnp.maximum(squares, 1e-12))  # the root's derivative at 0 is infinite
    return jnp.mean(jnp.square(norms - 1))


def r1_penalty(critic: Callable[[Any], Logits], reals: Any) -> jax.Array:
    """The R1 penalty (Mescheder et al. 2018, arXiv:1801.04406); its weight is the paper's gamma.

    Args:
      critic: images (N, H, W, C), or what the discriminator sees of them, to logits, each of its own image alone.
      reals: of N images.

    Returns:
      Half the mean squared norm of the logit's gradient with respect to what the discriminator sees, (); of several
      outputs, of the mean of their logits.
    """
    return jnp.mean(_squared_gradient_norms(critic, reals)) / 2


def _squared_gradient_norms(critic: Callable[[Any], Logits], inputs: Any) -> jax.Array:
    gradients = jax.tree.leaves(jax.grad(lambda inputs: jnp.sum(mean_over_outputs(critic(inputs))))(inputs))
    return functools.reduce(operator.add, [jnp.sum(jnp.square(x), axis=(1, 2, 3)) for x in gradients])


def lecam_penalty(
    real_logits: jax.Array, fake_logits: jax.Array, past_real: jax.Array, past_fake: jax.Array
) -> jax.Array:
    """LeCam's penalty: the distance of logits to the other kind's moving average (Tseng et al. 2021, arXiv:2104.03310).

    Args:
      real_logits: (N,), of the reals.
      fake_logits: (N,), of the fakes.
      past_real: (), the moving average of the reals' logits.
      past_fake: (), of the fakes'.

    Returns:
      The mean squared distance of the reals' logits to `past_fake`, plus that of the fakes' to `past_real`, ().
    """
    return jnp.mean(jnp.square(real_logits - past_fake)) + jnp.mean(jnp.square(fake_logits - past_real))


def checkerboard_penalty(fakes: jax.Array) -> jax.Array:
    """A penalty on grids of 2 and 4 px, which upsampling leaves.

    Like `checkerboard_index`, but each image is divided by its own surroundings, so that all count as much, however
    strong their contrast; and what rounding to 8 bits hides counts for nothing. Windows of half the size count as much
    as whole images, as a grid that changes its phase within the image leaves no peak in the whole. Penalising a
    generator's spectrum is due to Durall et al. 2020 (arXiv:2003.01826).

    Args:
      fakes: (N, S, S, C) in [-1, 1], S a multiple of 8, of 32 px or more.

    Returns:
      (): the mean of that of whole images and that of windows, which overlap by half. Each is the mean over the
      frequencies of a grid of log(max(ratio, 1)), where ratio is the power relative to the mean of its surroundings,
      averaged over the images. By chance 16 photographs have about 0.1, and fewer more.
    """
    planes = luminance(fakes)
    half = planes.shape[1] // 2
    places = range(0, half + 1, half // 2)
    windows = jnp.stack([planes[:, i : i + half, j : j + half] for i in places for j in places], 1)
    return (_peaks(planes) + _peaks(windows.reshape(-1, half, half))) / 2


def _peaks(planes: jax.Array) -> jax.Array:
    height, width = planes.shape[1:]
    rounding = (2 / 255) ** 2 / 12 * (3 / 8) ** 2 * height * width  # its power under a Hann window
    power = spectral_power(planes, (2, 4)) + rounding
    ratios = jnp.mean(power[..., 0] / jnp.mean(power[..., 1:], -1), 0)
    return jnp.mean(jnp.log(jnp.maximum(ratios, 1)))


def real_targets(key: jax.Array, batch_size: int, *, real_label: float, label_flip: float) -> jax.Array:
    """The discriminator's targets for the real images.

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
