"""Diversity: a collapsed set is seen, and pairs are counted fairly."""

from collections import Counter

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image
from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution import diversity
from medgan_jax.metrics.distribution.diversity import pairwise_similarity, similarity_metric
from medgan_jax.metrics.paired import ssim


@pytest.fixture(scope="module")
def phantoms():
    return np.stack([phantom_image(i, seed=3, image_size=32) for i in range(21)])


def test_all_pairs_of_a_small_set(phantoms):
    """Against every pair, one by one."""
    images = uint8_to_unit(phantoms)
    first, second = np.triu_indices(len(images), 1)
    expected = np.mean(np.asarray(ssim(images[first], images[second])))
    estimate = pairwise_similarity(phantoms)
    assert estimate.value == pytest.approx(expected, rel=1e-5)
    assert estimate.low < estimate.value < estimate.high


def test_collapse_is_seen(phantoms):
    collapsed = np.concatenate([phantoms[:2]] * 10)
    assert pairwise_similarity(collapsed).value > pairwise_similarity(phantoms).high
    assert pairwise_similarity(np.repeat(phantoms[:1], 20, 0)).value == pytest.approx(1)


@pytest.mark.parametrize("number", [2, 3, 20, 45, 46, 3000])
def test_pairs_are_of_different_images_and_fair(number):
    first, second = diversity._pairs(number, seed=1)
    assert np.all(first != second)
    assert len(first) == len(second) <= 1000
    if number > 2:
        assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == len(first)
        counts = Counter(np.concatenate([first, second]).tolist())
        assert max(counts.values()) - min(counts.get(i, 0) for i in range(number)) <= 2


def test_the_metric_follows_the_size():
    assert (similarity_metric(64), similarity_metric(256)) == ("ssim", "ms_ssim")
