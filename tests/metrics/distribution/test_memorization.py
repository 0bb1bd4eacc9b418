"""Copies are found whichever way they are turned, and other images are not called copies."""

import numpy as np
import pytest

from medgan_jax.metrics.distribution.memorization import memorization, nearest, turned


@pytest.mark.parametrize("symmetry", range(8))
def test_a_turned_copy_is_found(phantoms, symmetry):
    copies = np.stack([turned(image, symmetry) for image in phantoms[5:9]])
    found = nearest(copies, phantoms)
    np.testing.assert_array_equal(found.index, np.arange(5, 9))
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)
    for copy, index, turn in zip(copies, found.index, found.symmetry, strict=True):
        np.testing.assert_array_equal(turned(phantoms[index], turn), copy)


def test_the_eight_symmetries_differ(phantoms):
    assert len({turned(phantoms[0], symmetry).tobytes() for symmetry in range(8)}) == 8


def test_distance_is_the_root_mean_square_at_32_px(phantoms):
    """Against all differences, one by one."""
    small = phantoms.astype(float).reshape(40, 32, 2, 32, 2, 3).mean((2, 4)) / 255
    found = nearest(phantoms[:4], phantoms[10:], symmetries=False)
    for i in range(4):
        distances = np.sqrt(((small[i] - small[10:]) ** 2).mean((1, 2, 3)))
        assert found.index[i] == distances.argmin()
        assert found.distance[i] == pytest.approx(distances.min(), rel=1e-5)
    assert np.all(nearest(phantoms[:4], phantoms[10:]).distance <= found.distance)


def test_share_of_copies(phantoms):
    train, heldout = phantoms[:25], phantoms[25:]
    noisy = np.clip(train[:5].astype(float) + np.random.default_rng(0).normal(0, 3, train[:5].shape), 0, 255)
    fakes = np.concatenate([noisy.astype(np.uint8), 255 - heldout[:15]])
    estimate = memorization(nearest(fakes, train).distance, nearest(heldout, train).distance)
    assert estimate.value == 5 / 20
    assert estimate.low == pytest.approx(0.1119, abs=1e-3)  # Wilson's interval of 5 in 20
    assert estimate.high == pytest.approx(0.4687, abs=1e-3)


def test_no_copies_is_no_certainty():
    def share(fakes, heldout):
        return memorization(np.float32(fakes), np.float32(heldout))

    heldout = [0.1, 0.3, 0.4]
    estimate = share([0.2] * 30, heldout)
    assert (estimate.value, estimate.low) == (0, 0)
    assert 0.05 < estimate.high < 0.15
    assert share([0.05] * 30, heldout).value == 1
    assert share([0.05, 0.2], [0.0, 0.1, 0.4]).value == 0.5  # a held-out image that was trained on
    assert share([0.0, 0.2], [0.0]).value == 0.5  # and when there is no other
