"""Losses, penalties and targets against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracle

from medgan_jax.models.dcgan import Discriminator
from medgan_jax.training import losses

discriminator_loss, generator_loss = (
    jax.jit(f, static_argnames="loss") for f in (losses.discriminator_loss, losses.generator_loss)
)
r1_penalty = jax.jit(losses.r1_penalty, static_argnums=0)


def test_discriminator_loss_is_cross_entropy():
    real, fake, targets = np.float32([[2.0, -1.0], [0.5, -3.0], [0.9, 0.0]])
    p, q = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    expected = -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p)) - np.mean(np.log(1 - q))
    assert discriminator_loss(real, fake, targets, loss="bce") == pytest.approx(expected, rel=1e-5)


def test_generator_loss_is_non_saturating():
    logits = jnp.array([-20.0, 1.0])
    expected = np.mean(np.log1p(np.exp(-np.array([-20.0, 1.0]))))
    assert generator_loss(logits, loss="bce") == pytest.approx(expected, rel=1e-5)
    assert jax.grad(lambda x: generator_loss(x, loss="bce"))(logits)[0] == pytest.approx(-0.5, rel=1e-5)


def test_hinge_teaches_within_the_margin_only():
    real, fake = jnp.array([2.0, 0.5, -1.0]), jnp.array([-3.0, 0.25, -0.5])

    def loss(real, fake):
        return discriminator_loss(real, fake, jnp.ones(3), loss="hinge")

    assert loss(real, fake) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.25 + 0.5) / 3)
    for_real, for_fake = jax.grad(loss, argnums=(0, 1))(real, fake)
    np.testing.assert_allclose(for_real, np.float32([0, -1, -1]) / 3)
    np.testing.assert_allclose(for_fake, np.float32([0, 1, 1]) / 3)
    assert generator_loss(fake, loss="hinge") == pytest.approx(3.25 / 3)


def test_wasserstein_losses_are_mean_logits():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 4.0])
    assert discriminator_loss(real, fake, jnp.ones(2), loss="wgan-gp") == pytest.approx(-1.25 + 0.5)
    assert generator_loss(fake, loss="wgan-gp") == pytest.approx(-0.5)


@pytest.mark.parametrize("loss", ["bce", "hinge", "wgan-gp"])
def test_every_output_counts_as_much(loss):
    """Of a discriminator that has several: a logit for each image, and 5 x 5 of them."""
    random = np.random.default_rng(0)
    real, fake = ([random.normal(size=shape).astype("f") for shape in (4, (4, 5, 5))] for _ in range(2))
    real, fake = tuple(real), tuple(fake)
    targets = np.float32([1, 0.9, 0, 1])
    alone = discriminator_loss(real[0], fake[0], targets, loss=loss)
    places = discriminator_loss(real[1].ravel(), fake[1].ravel(), np.repeat(targets, 25), loss=loss)
    found = discriminator_loss(real, fake, targets, loss=loss)
    assert found == pytest.approx(float(alone + places) / 2, rel=1e-5)
    each = [generator_loss(logits.ravel(), loss=loss) for logits in fake]
    assert generator_loss(fake, loss=loss) == pytest.approx(float(sum(each)) / 2, rel=1e-5)
    expected = (fake[0] + fake[1].mean((1, 2))) / 2
    np.testing.assert_allclose(losses.mean_over_outputs(fake), expected, rtol=1e-5)


def test_gradient_penalty_of_known_slopes():
    """Of a plane the slope is that of its weights everywhere; of a square, twice the image."""
    reals, fakes = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    weights = jnp.full((4, 4, 3), 0.5)
    key = jax.random.key(1)

    def plane(images):
        return jnp.sum(images * weights[None], axis=(1, 2, 3))

    penalty = jax.jit(losses.gradient_penalty, static_argnums=0)
    steep = (0.5 * np.sqrt(48) - 1) ** 2
    assert penalty(plane, reals, fakes, key) == pytest.approx(steep, rel=1e-5)
    share = jax.random.uniform(key, (5, 1, 1, 1))
    between = np.asarray(share * reals + (1 - share) * fakes)
    expected = np.mean((2 * np.linalg.norm(between.reshape(5, -1), axis=1) - 1) ** 2)
    value = penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3)), reals, fakes, key)
    assert value == pytest.approx(expected, rel=1e-5)
    # A critic that is constant has no slope, and the penalty's own gradient stays finite there.
    flat = jax.jit(jax.grad(lambda s: losses.gradient_penalty(lambda x: s * plane(x), reals, fakes, key)))(0.0)
    assert jnp.isfinite(flat)


@pytest.mark.slow
def test_gradient_penalty_is_pytorchs():
    """Its value, and its gradient with respect to the parameters, which is a gradient of a gradient."""
    theirs = torch_oracle.load("critic32", "penalty")
    params = torch_oracle.variables(torch_oracle.load("critic32", "before"), "dis")["params"]
    images = jnp.asarray(torch_oracle.images(theirs["images"]))
    critic = Discriminator(32, 4, batch_norm=False)

    @jax.jit
    @jax.value_and_grad
    def penalty(params):  # between an image and itself, whatever is drawn
        apply = functools.partial(critic.apply, {"params": params}, training=False)
        return losses.gradient_penalty(apply, images, images, jax.random.key(0))

    value, grads = penalty(params)
    assert value == pytest.approx(float(theirs["value"]), rel=1e-5)
    expected = torch_oracle.variables(theirs, "dis")["params"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), grads, expected)


def test_losses_are_finite_for_extreme_logits():
    huge = jnp.array([1e4, -1e4])
    value, grads = jax.value_and_grad(lambda x: discriminator_loss(x, x, jnp.ones(2), loss="bce"))(huge)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(grads))


def targets(number, batch_size, **options):
    """(number, batch_size): of as many batches."""
    keys = jax.random.split(jax.random.key(0), number)
    return np.asarray(jax.jit(jax.vmap(lambda key: losses.real_targets(key, batch_size, **options)))(keys))


def test_smoothed_targets():
    np.testing.assert_array_equal(targets(1, 8, real_label=0.9, label_flip=0.0), np.full((1, 8), np.float32(0.9)))


@pytest.mark.parametrize(("flip", "least", "most"), [(0.25, 4, 4), (0.3, 4, 5), (1.0, 16, 16)])
def test_each_batch_flips_the_share_asked_for(flip, least, most):
    flipped = targets(200, 16, real_label=0.9, label_flip=flip) == 0
    assert (flipped.sum(axis=1).min(), flipped.sum(axis=1).max()) == (least, most)
    assert flipped.mean() == pytest.approx(flip, abs=0.01)
    np.testing.assert_allclose(flipped.mean(axis=0), flip, atol=0.12)  # every image as often


def test_r1_penalty_is_half_the_squared_slope_at_reals():
    reals = jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
    weights = jax.random.normal(jax.random.key(1), (4, 4, 3))

    def plane(images):
        return 7 + jnp.sum(images * weights[None], axis=(1, 2, 3))

    assert r1_penalty(plane, reals) == pytest.approx(float(jnp.sum(weights**2)) / 2, rel=1e-5)

    def bowl(images):
        return jnp.sum(images**2, axis=(1, 2, 3))

    expected = np.mean([2 * np.sum(np.square(image)) for image in np.asarray(reals)])
    assert r1_penalty(bowl, reals) == pytest.approx(expected, rel=1e-5)

    # Of several outputs, and of several maps of an image, the slope of the mean logit to all of them.
    steep = r1_penalty(lambda maps: (plane(maps[0]), 3 * maps[1][..., 0]), (reals, jnp.ones((5, 2, 2, 1))))
    expected = float(jnp.sum(jnp.square(weights / 2))) + 4 * (3 / 2 / 4) ** 2
    assert steep == pytest.approx(expected / 2, rel=1e-5)


def test_lecam_is_the_distance_to_the_average_of_the_other_kind():
    real, fake = jnp.array([2.0, 1.0]), jnp.array([-1.0, 0.5])
    expected = ((2 + 3) ** 2 + (1 + 3) ** 2) / 2 + ((-1 - 4) ** 2 + (0.5 - 4) ** 2) / 2
    assert losses.lecam_penalty(real, fake, jnp.float32(4), jnp.float32(-3)) == pytest.approx(expected)


def peaks_of(planes):
    """By numpy's FFT; a peak counts above its 16 surroundings alone, and not at all where 8 bits cannot show it."""
    size = planes.shape[1]
    hann = np.outer(*[np.hanning(size + 1)[:-1]] * 2)
    power = np.abs(np.fft.fft2((planes - planes.mean((1, 2), keepdims=True)) * hann)) ** 2
    power += np.sum(hann**2) / 127.5**2 / 12
    ring = sum(np.roll(power, (u, v), (1, 2)) for u in range(-2, 3) for v in range(-2, 3) if 2 in (abs(u), abs(v)))
    peaks = (power * 16 / ring).mean(0)[:: size // 4, :: size // 4].ravel()[1:]  # of 4 px, and so of 2 px
    return np.mean(np.log(np.maximum(peaks, 1)))


def test_checkerboard_penalty_is_the_logarithm_of_the_peaks_of_the_spectrum():
    """Of whole images and of windows of half the size; the phase of the grid here changes in the middle."""
    images = np.random.default_rng(0).normal(scale=0.2, size=(3, 64, 64, 1))
    images[:, :32:4] += 0.3
    images[:, 34::4] += 0.3
    windows = [images[:, i : i + 32, j : j + 32, 0] for i in (0, 16, 32) for j in (0, 16, 32)]
    whole, parts = peaks_of(images[..., 0]), peaks_of(np.concatenate(windows))
    assert parts > whole + 0.2
    assert losses.checkerboard_penalty(jnp.asarray(images)) == pytest.approx((whole + parts) / 2, rel=1e-3)
    assert losses.checkerboard_penalty(jnp.asarray(images / 1e4)) < 0.01


def test_checkerboard_penalty_leads_away_from_a_grid():
    images = np.random.default_rng(0).normal(scale=0.2, size=(8, 32, 32, 3)).astype(np.float32)
    images[:, ::2, ::2] += 0.2
    value, slope = jax.value_and_grad(losses.checkerboard_penalty)(jnp.asarray(images))
    assert losses.checkerboard_penalty(images - slope / 10) < value - 0.01
    images[0] /= 1e4  # so flat that rounding hides it: it does not rule the others
    slopes = jax.grad(losses.checkerboard_penalty)(jnp.asarray(images))
    assert jnp.sum(jnp.square(slopes[0])) < jnp.sum(jnp.square(slopes[1:]))
