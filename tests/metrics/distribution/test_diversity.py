"""Diversity: a collapsed set is seen, and every image counts."""

import numpy as np
import pytest

from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.diversity import pairwise_similarity, similarity_metric
from medgan_jax.metrics.paired import ssim


@pytest.fixture(scope="module")
def small(phantoms):
    return phantoms[:21, ::2, ::2]


def test_all_pairs_of_a_small_set(small):
    """Against every pair, one by one."""
    images = uint8_to_unit(small)
    first, second = np.triu_indices(len(images), 1)
    expected = np.mean(np.asarray(ssim(images[first], images[second])))
    estimate = pairwise_similarity(small)
    assert estimate.value == pytest.approx(expected, rel=1e-5)
    assert estimate.low < estimate.value < estimate.high


def test_collapse_is_seen(small):
    collapsed = np.concatenate([small[:2]] * 10)
    assert pairwise_similarity(collapsed).value > pairwise_similarity(small).high
    assert pairwise_similarity(np.repeat(small[:1], 20, 0)).value == pytest.approx(1)


@pytest.mark.parametrize("number", [2, 3, 46, 1500])
def test_pairs_are_of_different_images_and_fair(number):
    """Half of the images are black, half white: of all pairs n / 2 (n - 1) are alike, for which SSIM is 1."""
    images = np.zeros((number, 11, 11, 1), np.uint8)
    images[: number // 2] = 255
    half = number // 2
    alike = (half * (half - 1) + (number - half) * (number - half - 1)) / (number * (number - 1))
    assert pairwise_similarity(images, seed=1, replicates=0).value == pytest.approx(alike, abs=0.05)


def test_the_metric_follows_the_size():
    assert (similarity_metric(64), similarity_metric(256)) == ("ssim", "ms_ssim")
