"""All six against piq and piqa, and what must hold of any of them."""

import functools
import json

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from metrics_pairs import EXPECTED, KINDS, SHAPES, pairs

from medgan_jax.metrics.paired import METRICS, ms_gmsd, ms_ssim, psnr, ssim
from medgan_jax.sharding import data_mesh, sharded

TOLERANCE = {"psnr": 1e-3}
WITH_ALL = 176  # px: enough for every metric
each_metric = pytest.mark.parametrize("name", METRICS)


@functools.cache
def slope_of(name):
    """The gradient with respect to the first image, of a batch."""
    return jax.jit(jax.grad(lambda x, y: METRICS[name].function(x, y).sum()))


@pytest.fixture(scope="module")
def expected():
    return json.loads(EXPECTED.read_text())


# Every kind of pair; of large images, which are halved first, two kinds will do.
@pytest.mark.parametrize(
    ("kind", "size", "channels"),
    [(kind, *shape) for kind in KINDS for shape in SHAPES if shape[0] < 400 or kind in ("other", "noisy")],
)
def test_equals_piq_and_piqa(expected, kind, size, channels):
    x, y = pairs(kind, size, channels)
    scores = expected[f"{kind}_{size}_{channels}"]
    assert set(scores) == {name for name, metric in METRICS.items() if size >= metric.min_size}
    for name, values in scores.items():
        ours = METRICS[name].function(x, y)
        assert ours.shape == (len(x),)
        if name == "psnr" and kind == "same":
            assert np.all(np.isposinf(ours))
        else:
            np.testing.assert_allclose(ours, values, rtol=0, atol=TOLERANCE.get(name, 2e-4), err_msg=name)


def test_ssim_is_that_of_dm_pix():
    """Whose own filter takes several times as long."""
    x, y = pairs("other", 65)
    np.testing.assert_allclose(ssim(x, y), dm_pix.ssim(jnp.asarray(x), jnp.asarray(y)), atol=1e-5)


@each_metric
def test_identity_is_exact(name):
    x, _ = pairs("same", WITH_ALL)
    np.testing.assert_allclose(METRICS[name].function(x, x), METRICS[name].identical, rtol=0, atol=1e-5)


@each_metric
@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_flat_images_have_scores_and_finite_gradients(name, shade):
    function = METRICS[name].function
    flat = jnp.full((2, WITH_ALL, WITH_ALL, 3), shade)
    np.testing.assert_allclose(function(flat, flat), METRICS[name].identical, rtol=0, atol=1e-5)
    other = pairs("other", WITH_ALL)[1][:2]
    # The slope of PSNR where two images are the same is infinite.
    gradients = [slope_of(name)(flat, y) for y in ([other] if name == "psnr" else [flat, other])]
    assert all(jnp.all(jnp.isfinite(gradient)) for gradient in gradients)
    if shade:  # a black image has no edges at all, and the strength of an edge no slope where there is none
        assert jnp.any(gradients[-1] != 0)


@each_metric
def test_gradient_is_the_slope(name):
    """Along more of the same noise, against a central difference."""
    function = METRICS[name].function
    x, y = (jnp.asarray(a[:2], jnp.float32) for a in pairs("noisy", WITH_ALL))
    direction = x - y
    gradient = slope_of(name)(x, y)
    step = 0.02
    slope = (function(x + step * direction, y) - function(x - step * direction, y)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(gradient * direction, axis=(1, 2, 3)), slope, rtol=0.03)


@each_metric
def test_worsens_with_noise(name):
    x, y = pairs("noisy", WITH_ALL)
    metric = METRICS[name]
    scores = [np.asarray(metric.function(x, x + strength * (y - x))) for strength in (0.25, 0.5, 1.0)]
    signs = np.sign(np.diff(scores, axis=0))
    assert np.all(signs == (-1 if metric.higher_is_better else 1))
    assert np.all(scores[0] < metric.identical if metric.higher_is_better else scores[0] > metric.identical)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "mdsi"])
def test_symmetry(name):
    x, y = pairs("other", WITH_ALL)
    function = METRICS[name].function
    np.testing.assert_allclose(function(x, y), function(y, x), rtol=1e-5)


@each_metric
def test_range_scales(name):
    x, y = pairs("other", WITH_ALL)
    function = METRICS[name].function
    np.testing.assert_allclose(function(255 * x, 255 * y, data_range=255.0), function(x, y), rtol=1e-4)


@each_metric
def test_batch_mates_do_not_matter(name):
    x, y = (np.concatenate([pairs(kind, WITH_ALL)[i] for kind in ("other", "noisy", "dark")]) for i in range(2))
    function = METRICS[name].function
    alone = np.concatenate([function(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(function(x, y), alone, rtol=2e-5)
    np.testing.assert_allclose(function(x[::-1], y[::-1])[::-1], alone, rtol=2e-5)


@each_metric
def test_devices_do_not_matter(name):
    x, y = (a[:2] for a in pairs("other", WITH_ALL))
    function = METRICS[name].function
    mesh: Mesh = data_mesh()
    assert mesh.size == 2
    divided = function(*(jax.device_put(a, sharded(mesh)) for a in (x, y)))
    assert len(divided.sharding.device_set) == 2
    np.testing.assert_allclose(divided, function(x, y), rtol=1e-5)


@each_metric
def test_types(name):
    x, y = pairs("other", WITH_ALL)
    function = METRICS[name].function
    assert function(x, y).dtype == jnp.float32
    rounded = jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)
    assert function(*rounded).dtype == jnp.float32
    np.testing.assert_allclose(function(*rounded), function(*(a.astype(jnp.float32) for a in rounded)))
    with pytest.raises(ValueError, match=f"{name}: takes floating images in .0, 1., not uint8"):
        function((255 * x).astype(np.uint8), y)


@each_metric
def test_what_is_no_pair_is_refused(name):
    function, size = METRICS[name].function, METRICS[name].min_size
    images = jnp.zeros((2, size, size, 3))
    assert function(images, images).shape == (2,)
    with pytest.raises(ValueError, match="are no pairs"):
        function(images, images[:1])
    with pytest.raises(ValueError, match="takes images"):
        function(images[0], images[0])
    with pytest.raises(ValueError, match="takes images"):
        function(images[..., :2], images[..., :2])
    if size > 1:
        small = jnp.zeros((2, size, size - 1, 3))
        with pytest.raises(ValueError, match=f"{name}: needs images of {size} px or more, not {size} x {size - 1}"):
            function(small, small)


def test_options_do_what_they_say():
    x, y = pairs("other", 65)
    two_scales = ms_ssim(x, y, weights=(0.5, 0.5))
    assert two_scales.shape == (3,)
    one_scale = ms_ssim(x, y, weights=(1.0,))
    np.testing.assert_allclose(one_scale, ssim(x, y), rtol=2e-3)  # dm-pix limits the covariance, and Wang does not
    assert np.all(ms_gmsd(x, y, masking=0.0) < ms_gmsd(x, y))
    np.testing.assert_allclose(psnr(x, y), -10 * np.log10(np.mean((x - y) ** 2, (1, 2, 3))), rtol=1e-5)
