"""Losses against their definition, targets against theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax import losses


def test_discriminator_loss_is_cross_entropy():
    real, fake, targets = np.float32([[2.0, -1.0], [0.5, -3.0], [0.9, 0.0]])
    p, q = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    expected = -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p)) - np.mean(np.log(1 - q))
    assert losses.discriminator_loss(real, fake, targets) == pytest.approx(expected, rel=1e-5)


def test_generator_loss_is_non_saturating():
    logits = jnp.array([-20.0, 1.0])
    expected = np.mean(np.log1p(np.exp(-np.array([-20.0, 1.0]))))
    assert losses.generator_loss(logits) == pytest.approx(expected, rel=1e-5)
    assert jax.grad(lambda x: losses.generator_loss(x))(logits)[0] == pytest.approx(-0.5, rel=1e-5)


def test_losses_are_finite_for_extreme_logits():
    huge = jnp.array([1e4, -1e4])
    value, grads = jax.value_and_grad(lambda x: losses.discriminator_loss(x, x, jnp.ones(2)))(huge)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(grads))


def test_smoothed_targets():
    targets = losses.real_targets(jax.random.key(0), 8, real_label=0.9, label_flip=0.0)
    np.testing.assert_allclose(targets, 0.9)
    assert targets.shape == (8,)


@pytest.mark.parametrize(("flip", "least", "most"), [(0.25, 4, 4), (0.3, 4, 5), (1.0, 16, 16)])
def test_flips_the_share_asked_for(flip, least, most):
    flipped = [
        int((losses.real_targets(jax.random.key(i), 16, real_label=0.9, label_flip=flip) == 0).sum()) for i in range(50)
    ]
    assert (min(flipped), max(flipped)) == (least, most)
    assert np.mean(flipped) / 16 == pytest.approx(flip, abs=0.01)


def test_every_image_is_flipped_in_its_turn():
    targets = jnp.stack([losses.real_targets(jax.random.key(i), 8, real_label=1.0, label_flip=0.3) for i in range(200)])
    np.testing.assert_allclose(1 - targets.mean(axis=0), 0.3, atol=0.12)
