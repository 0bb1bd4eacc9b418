"""All metrics against piq and piqa, and what must hold of any of them."""

import functools
import json

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metrics_pairs import EXPECTED, KINDS, SHAPES, pairs

from medgan_jax.metrics.paired import METRICS, ms_ssim, psnr, ssim
from medgan_jax.sharding import data_mesh, sharded

pytestmark = pytest.mark.slow

TOLERANCE = {"psnr": 1e-3}
SIZES = {name: 176 if metric.min_size > 65 else 65 for name, metric in METRICS.items()}  # px
each_metric = pytest.mark.parametrize("name", METRICS)


@functools.cache
def gradient_of(name):
    """The gradient with respect to the first image, of a batch."""
    return jax.jit(jax.grad(lambda x, y: METRICS[name].function(x, y).sum()))


@pytest.fixture(scope="module")
def expected():
    return json.loads(EXPECTED.read_text())


# Of images of 400 px and more, one kind, and MDSI alone, which shrinks them first; of 176 px, MS-SSIM alone.
@pytest.mark.parametrize(
    ("kind", "size", "channels"),
    [(kind, *shape) for kind in KINDS for shape in SHAPES if shape[0] < 400 or kind == "other"],
)
def test_equals_piq_and_piqa(expected, kind, size, channels):
    """Grey ones with white at 255."""
    x, y = pairs(kind, size, channels)
    scores = expected[f"{kind}_{size}_{channels}"]
    assert set(scores) <= {name for name, metric in METRICS.items() if size >= metric.min_size}
    only = {176: ["ms_ssim"], 400: ["mdsi"], 650: ["mdsi"]}.get(size, scores)
    for name in only:
        function, values = METRICS[name].function, scores[name]
        ours = function(255 * x, 255 * y, data_range=255.0) if channels == 1 else function(x, y)
        assert ours.shape == (len(x),)
        if name == "psnr" and kind == "same":
            assert np.all(np.isposinf(ours))
        else:
            np.testing.assert_allclose(ours, values, rtol=0, atol=TOLERANCE.get(name, 2e-4), err_msg=name)


def test_ssim_is_that_of_dm_pix():
    """Whose own filter takes several times as long."""
    x, y = pairs("other", 65)
    np.testing.assert_allclose(ssim(x, y), jax.jit(dm_pix.ssim)(x, y), atol=1e-5)


@each_metric
def test_flat_images_have_scores_and_finite_gradients(name):
    function = METRICS[name].function
    other = pairs("other", SIZES[name])[1]
    for shade in (0.0, 0.5, 1.0):
        flat = np.full(other.shape, shade, np.float32)
        np.testing.assert_allclose(function(flat, flat), METRICS[name].identical, rtol=0, atol=1e-5)
        # The gradient of PSNR where two images are the same is infinite.
        gradients = [np.asarray(gradient_of(name)(flat, y)) for y in ([other] if name == "psnr" else [flat, other])]
        assert np.all(np.isfinite(gradients))
        if shade:  # a black image has no edges at all, and the strength of an edge no slope where there is none
            assert np.any(gradients[-1])


@each_metric
def test_gradient_is_the_slope(name):
    """Along more of the same noise, against a central difference."""
    function = METRICS[name].function
    x, y = pairs("noisy", SIZES[name])
    direction = x - y
    step = 0.01
    above, below = (np.asarray(function(x + step * sign * direction, y)) for sign in (1, -1))
    slope = np.sum(np.asarray(gradient_of(name)(x, y)) * direction, axis=(1, 2, 3))
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=0.03)


@each_metric
def test_worsens_with_noise(name):
    x, y = pairs("noisy", SIZES[name])
    metric = METRICS[name]
    scores = [np.asarray(metric.function(x, x + strength * (y - x))) for strength in (0, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(scores[0], metric.identical, rtol=0, atol=1e-5)
    worse = -1 if metric.higher_is_better else 1
    assert np.all(worse * np.diff(scores[1:], axis=0) > 0)
    assert np.all(scores[0] != scores[1])


@each_metric
def test_symmetry_types_and_batch_mates(name):
    """Exchanged images score the same (but for MDSI), as do images among others."""
    x, y = pairs("other", SIZES[name])
    function = METRICS[name].function
    scores = np.asarray(function(x, y))
    assert scores.dtype == np.float32
    if name != "mdsi":
        np.testing.assert_allclose(function(y, x), scores, rtol=1e-5)
    np.testing.assert_allclose(function(x[::-1], y[::-1]), scores[::-1], rtol=2e-5)
    for i in range(3):  # with copies of itself for mates
        np.testing.assert_allclose(function(x[[i] * 3], y[[i] * 3]), scores[[i] * 3], rtol=2e-5)
    rounded = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    assert jax.eval_shape(function, rounded, rounded).dtype == jnp.float32


@pytest.mark.parametrize("name", ["ssim", "mdsi"])
def test_devices_do_not_matter(name):
    x, y = pairs("other", SIZES[name])
    function = METRICS[name].function
    mesh = data_mesh()
    assert mesh.size == 2
    divided = function(*(jax.device_put(a[:2], sharded(mesh)) for a in (x, y)))
    assert len(divided.sharding.device_set) == 2
    np.testing.assert_allclose(divided, function(x, y)[:2], rtol=1e-5)


@each_metric
def test_what_is_no_pair_is_refused(name):
    function, size = METRICS[name].function, METRICS[name].min_size
    images = np.zeros((2, size, size, 3), np.float32)
    assert jax.eval_shape(function, images, images).shape == (2,)
    for x, y, message in (
        (images, images[:1], "are no pairs"),
        (images[0], images[0], "takes images"),
        (images[..., :2], images[..., :2], "takes images"),
        (images.astype(np.uint8), images, f"{name}: takes floating images in .0, 1., not uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            function(x, y)
    if size > 1:
        small = images[:, :, 1:]
        with pytest.raises(ValueError, match=f"{name}: needs images of {size} px or more, not {size} x {size - 1}"):
            function(small, small)


def test_fewer_scales_allow_smaller_images():
    x, y = pairs("other", 65)
    assert ms_ssim(x, y, weights=(0.5, 0.5)).shape == (3,)
    # dm-pix limits the covariance, and Wang does not.
    ours = ms_ssim(255 * x, 255 * y, weights=(1.0,), data_range=255.0)
    np.testing.assert_allclose(ours, ssim(x, y), rtol=2e-3)
    np.testing.assert_allclose(psnr(x, y), -10 * np.log10(np.mean((x - y) ** 2, (1, 2, 3))), rtol=1e-5)
