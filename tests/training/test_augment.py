"""Changes are drawn for each image, are what they say, and have the gradients of finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.config import AugmentConfig
from medgan_jax.training import augment

KEY = jax.random.key(3)
OFF = AugmentConfig(
    flips=False, quarter_turns=False, color=0.0, translation=0.0, cutout=0.0, probability=1.0,
    adaptive_target=0.0, adaptive_images=1,
)  # fmt: skip
CHANGES = {
    "flips": augment.flips,
    "quarter_turns": augment.quarter_turns,
    "color": functools.partial(augment.color, strength=1.0),
    "translation": functools.partial(augment.translation, share=0.25),
    "cutout": functools.partial(augment.cutout, share=0.5),
}
ON = {"flips": True, "quarter_turns": True, "color": 1.0, "translation": 0.25, "cutout": 0.5}


def settings(**on):
    return dataclasses.replace(OFF, **on)


def images(number, side=8, channels=3):
    return jax.random.uniform(jax.random.key(0), (number, side, side, channels), minval=-1)


def same_image(number, side=8, channels=3):
    """One image, again and again: what differs afterwards was drawn for each."""
    return jnp.broadcast_to(images(1, side, channels), (number, side, side, channels))


def matches(changed, candidates):
    """Which candidate each changed image is: (N, K)."""
    return np.array([[bool(jnp.array_equal(one, other)) for other in candidates] for one in changed])


@pytest.mark.parametrize("name", [*CHANGES, "all"])
def test_gradient_is_that_of_finite_differences(name):
    """In a random direction, in double precision: the changes are linear or, contrast after brightness, smooth."""
    with jax.enable_x64(True):
        x = images(3).astype(jnp.float64)
        direction, weights = (jax.random.normal(jax.random.key(i), x.shape, jnp.float64) for i in (1, 2))

        def loss(x):
            changed = augment.augment(x, KEY, settings(**ON), 0.7) if name == "all" else CHANGES[name](x, KEY)
            return jnp.sum(weights * jnp.sin(2 * changed))

        step = 1e-6
        difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        slope = jnp.vdot(jax.grad(loss)(x), direction)
        assert abs(slope) > 0.1
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_drawn_for_each_image(name):
    changed = np.asarray(CHANGES[name](same_image(32), KEY))
    assert len({image.tobytes() for image in changed}) >= {"flips": 4, "quarter_turns": 4}.get(name, 12)
    again = np.asarray(CHANGES[name](same_image(32), KEY))
    np.testing.assert_array_equal(changed, again)
    assert not np.array_equal(changed, CHANGES[name](same_image(32), jax.random.key(4)))


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_switched_off_changes_nothing_of_the_rest(name):
    """Each change has its own random numbers, so switching one on leaves the draws of the others."""
    x = images(4)
    assert settings(**{name: ON[name]}).changes() and not OFF.changes()
    alone = augment.augment(x, KEY, settings(**{name: ON[name]}), 1.0)
    assert not np.array_equal(alone, x)
    np.testing.assert_array_equal(augment.augment(x, KEY, OFF, 1.0), x)
    np.testing.assert_array_equal(augment.augment(x, KEY, settings(**ON), 0.0), x)


def test_a_change_draws_the_same_whether_or_not_others_are_on():
    x = jnp.ones((64, 8, 8, 1))  # which flips and turns leave as it is
    alone = augment.augment(x, KEY, settings(cutout=0.5), 1.0)
    np.testing.assert_array_equal(augment.augment(x, KEY, settings(cutout=0.5, flips=True), 1.0), alone)


@pytest.mark.parametrize("probability", [0.25, 0.8])
def test_probability_is_the_share_of_images_changed(probability):
    x = same_image(400)
    run = jax.jit(lambda p: augment.augment(x, KEY, settings(color=1.0), p))
    changed = ~np.all(np.asarray(run(probability) == x), axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(probability, abs=0.08)


def test_flips_and_turns_are_those_of_the_square():
    x = same_image(400)
    one = x[0]
    mirrored = [one, one[:, ::-1], one[::-1], one[::-1, ::-1]]
    found = matches(augment.flips(x, KEY), mirrored)
    np.testing.assert_array_equal(found.sum(axis=1), 1)
    np.testing.assert_allclose(found.mean(axis=0), 0.25, atol=0.08)
    turned = [jnp.rot90(one, k) for k in range(4)]
    found = matches(augment.quarter_turns(x, KEY), turned)
    np.testing.assert_array_equal(found.sum(axis=1), 1)
    np.testing.assert_allclose(found.mean(axis=0), 0.25, atol=0.08)


def test_mirror_at_random_mirrors_half():
    x = images(200)
    changed = augment.mirror_at_random(x, KEY)
    mirrored = np.all(np.asarray(changed == x[:, :, ::-1]), axis=(1, 2, 3))
    untouched = np.all(np.asarray(changed == x), axis=(1, 2, 3))
    assert np.all(mirrored ^ untouched)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.1)


def test_translation_shifts_whole_pixels_and_brings_in_grey():
    x = same_image(300)
    changed = np.asarray(augment.translation(x, KEY, 0.25))
    one = np.pad(np.asarray(x[0]), ((2, 2), (2, 2), (0, 0)))
    windows = {one[i : i + 8, j : j + 8].tobytes(): (i - 2, j - 2) for i in range(5) for j in range(5)}
    shifts = np.array([windows[image.tobytes()] for image in changed])
    assert {tuple(shift) for shift in shifts} == set(windows.values())
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=0.3)


def test_cutout_hides_one_square():
    changed = np.asarray(augment.cutout(jnp.ones((500, 8, 8, 3)), KEY, 0.5))
    assert set(np.unique(changed)) == {0, 1}
    hidden = changed == 0
    assert np.all(hidden.all(axis=-1) == hidden.any(axis=-1))
    rows, columns = hidden[..., 0].any(axis=2).sum(axis=1), hidden[..., 0].any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(hidden[..., 0].sum(axis=(1, 2)), rows * columns)
    assert rows.max() == columns.max() == 4
    assert rows.min() == columns.min() == 2  # half of it beyond the edge
    assert np.all(hidden[..., 0].mean(axis=0) > 0.1)  # anywhere


def test_color_is_brightness_then_saturation_then_contrast():
    """Written out with the numbers that were drawn."""
    x = np.asarray(images(5), np.float64)
    u = np.asarray(jax.random.uniform(KEY, (3, 5), minval=-0.5, maxval=0.5), np.float64)[:, :, None, None, None]
    expected = x + u[0]
    expected = expected.mean(-1, keepdims=True) + (1 + 2 * u[1]) * (expected - expected.mean(-1, keepdims=True))
    mean = expected.mean((1, 2), keepdims=True)
    expected = mean + (1 + u[2]) * (expected - mean)
    np.testing.assert_allclose(augment.color(jnp.asarray(x, jnp.float32), KEY, 1.0), expected, atol=2e-6)
    assert np.max(np.abs(expected - x)) > 0.3
    weak = augment.color(jnp.asarray(x, jnp.float32), KEY, 1e-3)
    np.testing.assert_allclose(weak, x, atol=2e-3)


def test_grey_images_have_no_saturation_to_change():
    x = images(4, channels=1)
    changed = np.asarray(augment.color(x, KEY, 1.0))
    flat, was = changed.reshape(4, -1), np.asarray(x).reshape(4, -1)
    for after, before in zip(flat, was, strict=True):  # a line through all of an image's values
        slope, offset = np.polyfit(before, after, 1)
        np.testing.assert_allclose(after, slope * before + offset, atol=1e-5)
        assert 0.5 <= slope <= 1.5
