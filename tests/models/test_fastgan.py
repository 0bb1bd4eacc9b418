"""FastGAN's generator: sizes, widths, classes and types; its numbers are in the golden step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from medgan_jax.models.fastgan import FastGANGenerator

KEY = jax.random.key(0)


def shapes(module, *inputs):
    out, variables = jax.eval_shape(functools.partial(module.init_with_output, training=True), KEY, *inputs)
    return out, {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


@pytest.mark.parametrize(("size", "blocks", "last"), [(32, 3, 64), (512, 7, 8)])
def test_sizes_and_the_papers_widths(size, blocks, last):
    """With 32 maps, half of the paper's: one convolution in every other block, excitation from 64 px on."""
    module = FastGANGenerator(size, channels=1)
    image, found = shapes(module, jnp.zeros((7, 100)))
    widths = [512, 256, 128, 64, 64, 32, 16, 8]
    assert found["params/dense_0/kernel"] == (100, 2 * 16 * 512)
    for i in range(1, blocks + 1):
        assert found[f"params/block_{i}/conv_0/kernel"] == (3, 3, widths[i - 1], 2 * widths[i])
        assert (f"params/block_{i}/conv_1/kernel" in found) == (i % 2 == 1)
        assert (f"params/excitation_{i}/dense_0/kernel" in found) == (i >= 4)
        if i >= 4:
            assert found[f"params/excitation_{i}/dense_0/kernel"] == (16 * widths[i - 4], widths[i])
    assert found[f"params/conv_{blocks + 1}/kernel"] == (3, 3, last, 1)
    assert (image.shape, image.dtype) == ((7, size, size, 1), jnp.float32)


@pytest.mark.parametrize("size", [16, 48, 1024])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="power of two from 32 to 512"):
        shapes(FastGANGenerator(size), jnp.zeros((1, 8)))


@pytest.mark.slow
def test_classes_types_and_the_length_of_latents(drawn):
    half, plain = (FastGANGenerator(32, 3, 1, dtype, num_classes=2) for dtype in (jnp.bfloat16, jnp.float32))
    latents = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    variables = jax.device_put(drawn(plain, latents, np.array([0, 1])))  # which are float32

    @functools.partial(jax.jit, static_argnums=0)
    def images(module, latents, labels):
        return module.apply(variables, latents, labels, training=False)

    first, other = (images(plain, latents, np.array(labels)) for labels in ([0, 1], [0, 0]))
    np.testing.assert_array_equal(first[0], other[0])
    assert np.any(first[1] != other[1])
    np.testing.assert_allclose(images(plain, 3 * latents, np.array([0, 1])), first, atol=1e-5)
    rounded = images(half, latents, np.array([0, 1]))
    assert rounded.dtype == jnp.float32 and np.any(rounded != first)
    np.testing.assert_allclose(rounded, first, atol=0.05)


@pytest.mark.slow
def test_noise_is_of_the_latents_alone_and_has_its_strength(drawn):
    module = FastGANGenerator(32, features=1)
    latents = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    variables = drawn(module, latents)

    @jax.jit
    def maps_and_images(strength, latents):
        params = dict(variables["params"])
        params["block_3"] = params["block_3"] | {"noise_1": {"strength": strength}}
        inputs = {**variables, "params": params}
        images, seen = module.apply(
            inputs, latents, training=False, capture_intermediates=True, mutable="intermediates"
        )
        return seen["intermediates"]["block_3"]["noise_1"]["__call__"][0], images

    (without, _), (noisy, images) = (maps_and_images(np.float32(s), latents) for s in (0, 3))
    noise = (noisy - without)[..., 0]
    np.testing.assert_allclose(noisy - without, np.broadcast_to(noise[..., None], noisy.shape), atol=1e-5)
    assert noise.std() == pytest.approx(3, rel=0.1) and abs(noise.mean()) < 0.3
    between = np.corrcoef(noise.reshape(4, -1)) - np.corrcoef(latents)  # images are as alike as their latents
    assert np.abs(between).max() < 0.15
    beside = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
    assert abs(beside) < 0.1
    np.testing.assert_array_equal(maps_and_images(np.float32(3), latents[::-1])[1], images[::-1])
