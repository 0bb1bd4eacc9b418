"""The projected discriminator: what it is shown, its heads, classes and types; its numbers are in the golden step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.models.projected import ProjectedDiscriminator, load_frozen, map_shapes, project_images

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("size", "shown"), [(32, 128), (256, 256), (512, 256)])
def test_four_maps_of_an_image_of_any_size(size, shown):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    found = [(x.shape, x.dtype) for x in jax.eval_shape(project_images, load_frozen(), image)]
    assert found == [(x.shape, x.dtype) for x in map_shapes(size)]
    sides = zip((4, 4, 8, 16), (32, 32, 64, 128), strict=True)
    assert found == [((1, shown // stride, shown // stride, c), jnp.float32) for stride, c in sides]


def test_random_matrices_keep_the_size_of_numbers_and_never_change():
    frozen = load_frozen()
    assert [x.shape for x in frozen["channels"]] == [(24, 32), (40, 64), (112, 128), (320, 256)]
    assert [x.shape for x in frozen["scales"]] == [(32, 32), (64, 32), (128, 64), (256, 128)]
    for matrix in (*frozen["channels"], *frozen["scales"]):
        assert np.mean(np.square(matrix)) * len(matrix) == pytest.approx(1, rel=0.1)
    np.testing.assert_allclose(frozen["channels"][0][0, :3], [0.02566457, -0.02696579, 0.13072573], rtol=1e-5)


def test_a_class_changes_the_logits_of_its_image_alone(drawn):
    module = ProjectedDiscriminator(32, num_classes=3)
    random = np.random.default_rng(0)
    maps = tuple(random.normal(size=(2, *x.shape[1:])).astype(np.float32) for x in map_shapes(32))
    variables = drawn(module, maps, np.array([0, 0]))
    assert set(variables) == {"params", "batch_stats", "spectral"}
    apply = jax.jit(functools.partial(module.apply, training=False))
    logits, others = (apply(variables, maps, np.array([label, 2])) for label in (0, 1))
    assert [x.shape for x in logits] == [(2, 5, 5)] * 4
    for ours, theirs in zip(logits, others, strict=True):
        assert np.any(ours[0] != theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    half = ProjectedDiscriminator(32, jnp.bfloat16, num_classes=3)
    apply = jax.jit(functools.partial(half.apply, training=False))
    for x, expected in zip(apply(variables, maps, np.array([0, 2])), logits, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, expected, atol=0.1)
