"""Transforms are drawn for each image, do what they say, and have the gradients of finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.config import AugmentConfig
from medgan_jax.training import augment as module

KEY = jax.random.key(3)
augment = jax.jit(module.augment, static_argnames="settings")
color = jax.jit(module.color, static_argnames="strength")
cutout, translation = (jax.jit(f, static_argnames="share") for f in (module.cutout, module.translation))
flips, quarter_turns, mirror_at_random = map(jax.jit, (module.flips, module.quarter_turns, module.mirror_at_random))
OFF = AugmentConfig(
    flips=False, quarter_turns=False, color=0.0, translation=0.0, cutout=0.0, probability=1.0,
    adaptive_target=0.0, adaptive_images=1,
)  # fmt: skip
ALL = {"flips": True, "quarter_turns": True, "color": 1.0, "translation": 0.25, "cutout": 0.5}


def settings(**on):
    return dataclasses.replace(OFF, **on)


def images(number):
    return np.random.default_rng(0).uniform(-1, 1, (number, 8, 8, 3)).astype(np.float32)


def copies(number):
    """One image many times: what differs afterwards was drawn for each."""
    return np.tile(images(1), (number, 1, 1, 1))


def test_gradient_is_that_of_finite_differences():
    """In a random direction, in double precision."""
    with jax.enable_x64(True):
        x, step = images(3).astype(np.float64), 1e-6
        direction, weights = np.random.default_rng(1).standard_normal((2, *x.shape))

        @jax.jit
        @jax.value_and_grad
        def loss(x):
            return jnp.sum(weights * jnp.sin(2 * augment(x, KEY, settings(**ALL), 0.7)))

        difference = (loss(x + step * direction)[0] - loss(x - step * direction)[0]) / (2 * step)
        slope = np.vdot(loss(x)[1], direction)
        assert abs(slope) > 0.1
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_each_image_and_each_key_draws_its_own():
    least = {"flips": 4, "quarter_turns": 4, "color": 32, "translation": 12, "cutout": 12}
    each = {name: settings(**{name: ALL[name]}) for name in least}
    assert all(on.is_enabled() for on in each.values())
    run = jax.jit(lambda x, key: {name: module.augment(x, key, on, 1.0) for name, on in each.items()})
    changed, again, other = (jax.device_get(run(copies(32), key)) for key in (KEY, KEY, jax.random.key(4)))
    for name, number in least.items():
        assert len({image.tobytes() for image in changed[name]}) >= number
        np.testing.assert_array_equal(changed[name], again[name])
        assert not np.array_equal(changed[name], other[name])


def test_a_transform_that_is_off_or_not_drawn_leaves_the_values_exactly():
    x = images(4)
    assert not OFF.is_enabled()
    np.testing.assert_array_equal(augment(x, KEY, OFF, 1.0), x)
    np.testing.assert_array_equal(augment(x, KEY, settings(**ALL), 0.0), x)


def test_a_transform_draws_the_same_whichever_others_are_on():
    x = np.ones((64, 8, 8, 1), np.float32)  # which flips leave as it is
    both = augment(x, KEY, settings(cutout=0.5, flips=True), 1.0)
    np.testing.assert_array_equal(both, augment(x, KEY, settings(cutout=0.5), 1.0))


def test_probability_is_the_share_of_images_changed():
    x = copies(400)
    for probability in (0.25, 0.8):
        changed = np.any(np.asarray(augment(x, KEY, settings(color=1.0), probability) != x), axis=(1, 2, 3))
        assert changed.mean() == pytest.approx(probability, abs=0.08)


def test_flips_and_turns_are_those_of_the_square_each_as_likely():
    one = np.asarray(images(1)[0])
    mirrored = [one, one[:, ::-1], one[::-1], one[::-1, ::-1]]
    turned = [np.rot90(one, k) for k in range(4)]
    for changed, expected in ((flips(copies(400), KEY), mirrored), (quarter_turns(copies(400), KEY), turned)):
        found = np.array([np.all(np.asarray(changed) == other, axis=(1, 2, 3)) for other in expected])
        np.testing.assert_array_equal(found.sum(axis=0), 1)
        np.testing.assert_allclose(found.mean(axis=1), 0.25, atol=0.08)


def test_mirror_at_random_mirrors_half():
    x = images(200)
    changed = mirror_at_random(x, KEY)
    mirrored, kept = (np.all(np.asarray(changed == other), axis=(1, 2, 3)) for other in (x[:, :, ::-1], x))
    assert np.all(mirrored ^ kept)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.1)


def test_translation_shifts_whole_pixels_and_brings_in_grey():
    padded = np.pad(np.asarray(images(1)[0]), ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 8, j : j + 8].tobytes(): (i - 2, j - 2) for i in range(5) for j in range(5)}
    shifts = np.array([windows[image.tobytes()] for image in np.asarray(translation(copies(300), KEY, 0.25))])
    assert {tuple(shift) for shift in shifts} == set(windows.values())
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=0.3)


def test_cutout_hides_one_square_anywhere():
    changed = np.asarray(cutout(np.ones((500, 8, 8, 3), np.float32), KEY, 0.5))
    assert set(np.unique(changed)) == {0, 1}
    hidden = changed[..., 0] == 0
    assert np.all((changed == 0) == hidden[..., None])
    rows, columns = (hidden.any(axis=axis).sum(axis=1) for axis in (2, 1))
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2)), rows * columns)
    for side in (rows, columns):
        assert (side.min(), side.max()) == (2, 4)  # at least half of it within the image
    assert np.all(hidden.mean(axis=0) > 0.1)


def test_color_is_brightness_then_saturation_then_contrast():
    """Written out with the numbers that were drawn."""
    x = np.asarray(images(5), np.float64)
    u = np.asarray(jax.random.uniform(KEY, (3, 5), minval=-0.5, maxval=0.5), np.float64)[:, :, None, None, None]
    expected = x + u[0]
    expected = expected.mean(-1, keepdims=True) + (1 + 2 * u[1]) * (expected - expected.mean(-1, keepdims=True))
    mean = expected.mean((1, 2), keepdims=True)
    expected = mean + (1 + u[2]) * (expected - mean)
    np.testing.assert_allclose(color(images(5), KEY, 1.0), expected, atol=2e-6)
    assert np.max(np.abs(expected - x)) > 0.3
    np.testing.assert_allclose(color(images(5), KEY, 1e-3), x, atol=2e-3)
