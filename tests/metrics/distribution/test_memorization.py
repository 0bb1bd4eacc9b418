"""Copies are found however they are altered, and other images are not called copies."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from benchmarks.sensitivity import altered_copies
from medgan_jax.data.phantom import phantom_image
from medgan_jax.metrics.distribution.memorization import (
    CopySearch,
    copying_z,
    memorization,
    memorized,
    nearest,
    turned,
)


@pytest.fixture(scope="module")
def small():
    """uint8, (112, 32, 32, 3): compared as they are, without resizing."""
    return np.stack([phantom_image(i, seed=3, image_size=32) for i in range(112)])


@pytest.fixture(scope="module")
def search(small):
    return CopySearch(small[:16])


def test_the_eight_symmetries(phantoms):
    image = phantoms[0]
    views = [turned(image, symmetry) for symmetry in range(8)]
    assert len({view.tobytes() for view in views}) == 8
    for symmetry, view in enumerate(views):
        np.testing.assert_array_equal(view, np.rot90(image[:, ::-1] if symmetry >= 4 else image, symmetry % 4))
    np.testing.assert_array_equal(turned(phantoms[:3], 5)[2], turned(phantoms[2], 5))


@pytest.mark.slow
def test_training_images_are_compared_with_those_of_other_groups(small):
    """Of two patients: two images are left to propose, and three are asked for."""
    images, groups = small[:4], np.array([0, 0, 1, 1])
    found = CopySearch(images).nearest(images, (groups, groups))
    for ours, others in (([0, 1], [2, 3]), ([2, 3], [0, 1])):
        alone = CopySearch(images[others]).nearest(images[ours])
        np.testing.assert_array_equal(found.index[ours], np.array(others)[alone.index])
        np.testing.assert_allclose(found.distance[ours], alone.distance, atol=1e-6)


@pytest.mark.slow
def test_a_turned_copy_is_the_same_image(small, search):
    copies = np.concatenate([turned(small[5:7], symmetry) for symmetry in range(8)])
    found = search.nearest(copies)
    np.testing.assert_array_equal(found.index, [5, 6] * 8)
    np.testing.assert_array_equal(found.distance, 0)
    for copy, index, turn in zip(copies, found.index, found.symmetry, strict=True):
        np.testing.assert_array_equal(turned(small[index], turn), copy)


@pytest.mark.slow
def test_the_distance_is_one_minus_the_correlation(small, search):
    """Of a noisy copy: of all channels together, each without its mean."""
    noise = np.random.default_rng(0).normal(0, 15, small[3:7].shape)
    noisy = np.uint8(np.clip(turned(small[3:7], 6) + noise, 0, 255))
    found = search.nearest(noisy)
    np.testing.assert_array_equal(found.index, np.arange(3, 7))
    np.testing.assert_array_equal(found.symmetry, 6)
    for copy, original, distance in zip(noisy, turned(small[3:7], 6), found.distance, strict=True):
        x, y = (image.astype(float) - image.mean((0, 1)) for image in (copy, original))
        assert distance == pytest.approx(1 - np.corrcoef(x.ravel(), y.ravel())[0, 1], rel=1e-3)


@pytest.mark.slow
def test_neither_colour_nor_contrast_counts(small, search):
    recoloured = np.uint8(0.5 * small[3:7] + [20, 60, 100])
    found = search.nearest(recoloured)
    np.testing.assert_array_equal(found.index, np.arange(3, 7))
    assert np.all((found.distance > 0) & (found.distance < 2e-3))  # what rounding to grey levels leaves


@pytest.mark.slow
def test_a_cropped_copy_is_registered():
    """To 95 and 90 % of the side: in a corner, at an edge, and in the middle."""
    images = np.stack([phantom_image(i, seed=3, image_size=40) for i in range(10)])
    boxes = [(0, 0, 38, 38), (4, 2, 40, 38), (2, 2, 38, 38)]
    original = Image.fromarray(images[8])
    cropped = np.stack([np.asarray(original.resize((40, 40), Image.Resampling.BILINEAR, box)) for box in boxes])
    found = CopySearch(images).nearest(cropped)
    np.testing.assert_array_equal(found.index, 8)
    y = images[8].astype(float) - images[8].mean((0, 1))
    for copy, distance in zip(cropped, found.distance, strict=True):
        x = copy.astype(float) - copy.mean((0, 1))
        assert distance < 0.3 * (1 - np.corrcoef(x.ravel(), y.ravel())[0, 1])


@pytest.mark.slow
def test_altered_copies_are_named_and_unseen_images_are_not(small, search):
    of_heldout, others = (search.nearest(images).distance for images in (small[16:64], small[64:]))
    copies = search.nearest(altered_copies(small[:16], 0))
    assert memorized(copies.distance, of_heldout).sum() >= 15
    assert (copies.index == np.arange(16)).sum() >= 15
    assert memorized(others, of_heldout).sum() <= 1
    assert copying_z(copies.distance, of_heldout, seed=0).high < -3
    assert abs(copying_z(others, of_heldout, seed=0).value) < 3


@pytest.mark.slow
def test_few_small_and_grey_images(phantoms):
    """One and two, fewer than are proposed; of 17 px."""
    for number in (1, 2):
        train = phantoms[:number, ::2, ::2][:, :17, :17, :1]
        found = CopySearch(train).nearest(turned(np.concatenate([train, 255 - train]), 3))
        np.testing.assert_array_equal(found.index[:number], np.arange(number))
        np.testing.assert_array_equal(found.distance == 0, np.arange(2 * number) < number)


@pytest.mark.slow
def test_flat_images_equal_each_other_only(search, small):
    flat = np.full_like(small[:2], 128)
    assert np.all(search.nearest(flat).distance == 1)
    found = CopySearch(np.concatenate([small[:5], flat[:1]])).nearest(flat)
    np.testing.assert_array_equal(found.index, 5)
    np.testing.assert_array_equal(found.distance, 0)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_other_images(search, small):
    together, alone = search.nearest(small[20:40]), search.nearest(small[31:32])
    np.testing.assert_array_equal(together.index[11], alone.index[0])
    np.testing.assert_allclose(together.distance[11], alone.distance[0], rtol=1e-5)


def test_the_nearest_by_pixels(phantoms):
    """Against all differences at 32 px, one by one."""
    small = phantoms.astype(float).reshape(40, 32, 2, 32, 2, 3).mean((2, 4))
    distances = ((small[:4, None] - small[None, 10:]) ** 2).mean((2, 3, 4))
    index, distance = nearest(phantoms[:4], phantoms[10:])
    np.testing.assert_array_equal(index, distances.argmin(1))
    np.testing.assert_allclose(255 * distance, np.sqrt(distances.min(1)), rtol=1e-4)


def test_share_of_copies():
    heldout = np.float32([0.2, 0.3, 0.4])
    fakes = np.float32([0.1] * 5 + [0.2] * 15)
    estimate = memorization(fakes, heldout)
    assert estimate.value == 5 / 20
    assert estimate.low == pytest.approx(0.1119, abs=1e-3)  # Wilson's interval of 5 in 20
    assert estimate.high == pytest.approx(0.4687, abs=1e-3)
    np.testing.assert_array_equal(memorized(fakes, heldout), np.arange(20) < 5)


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


def test_copying_is_the_z_score_of_mann_whitneys_u():
    random = np.random.default_rng(0)
    for fakes, heldout in (
        (random.random(30), random.random(12)),
        (random.integers(0, 5, 40), random.integers(1, 6, 9)),
    ):
        n, m = len(fakes), len(heldout)
        u = mannwhitneyu(fakes, heldout).statistic
        expected = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
        estimate = copying_z(fakes, heldout, seed=0)
        assert estimate.value == pytest.approx(expected)
        assert estimate.low < expected < estimate.high
    scores = [copying_z(random.random(50), random.random(20), seed=0, replicates=0).value for _ in range(500)]
    assert abs(np.mean(scores)) < 0.15  # standard normal where both are of one distribution
    assert np.std(scores) == pytest.approx(1, abs=0.1)
