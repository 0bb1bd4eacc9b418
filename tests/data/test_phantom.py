"""Phantoms: determinism, sizes, and the ABCD rule measured on the pictures."""

import numpy as np
import pytest

from medgan_jax.data.phantom import LABELS, MAX_SIZE, MIN_SIZE, VERSION, phantom_image, phantom_label

COUNT = 45  # images of each class that the ABCD rule is measured on


def test_an_image_is_a_function_of_seed_index_and_label():
    image = phantom_image(7, seed=3, image_size=32)
    others = [(8, 3, None), (7, 4, None), *((7, 3, label) for label in LABELS if label != phantom_label(7, seed=3))]
    for index, seed, label in others:
        assert not np.array_equal(image, phantom_image(index, seed=seed, image_size=32, label=label))
    again = phantom_image(7, seed=3, image_size=32, label=phantom_label(7, seed=3))
    np.testing.assert_array_equal(image, again)


def test_a_fifth_is_malignant():
    labels = [phantom_label(index, seed=1) for index in range(1000)]
    assert set(labels) == set(LABELS)
    assert labels.count("malignant") / 1000 == pytest.approx(0.2, abs=0.04)


def test_pixels_never_change():
    """Else VERSION must be raised: caches are keyed by it. Other hardware may move a pixel by one grey level."""
    assert VERSION == 1
    image = phantom_image(3, seed=0, image_size=16)
    expected = [[209, 186, 174], [198, 176, 164], [151, 98, 67], [216, 193, 179]]
    assert np.abs(image[8, ::4].astype(int) - expected).max() <= 1


def test_shape_type_and_contrast():
    for size in (MIN_SIZE, 33, MAX_SIZE):
        image = phantom_image(0, seed=0, image_size=size, label="benign")
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert int(np.ptp(image)) > 80


@pytest.mark.parametrize(("small", "large"), [(16, 128), (64, 256)])
def test_a_small_picture_is_the_large_one_seen_from_afar(small, large):
    shrink = large // small
    for index, label in enumerate(LABELS):
        fine = phantom_image(index, seed=2, image_size=large, label=label).astype(float)
        coarse = phantom_image(index, seed=2, image_size=small, label=label)
        shrunk = fine.reshape(small, shrink, small, shrink, 3).mean((1, 3))
        assert np.abs(shrunk - coarse).mean() < 1.0  # grey levels
        assert np.abs(shrunk - coarse).max() < 32


def _abcd(image: np.ndarray) -> dict[str, float]:
    """Asymmetry, border irregularity, colours and diameter of the lesion in an image."""
    size = len(image)
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    radius = np.hypot(*np.meshgrid(axis, axis))
    skin = np.median(image[(radius > 0.85) & (radius < 1)], axis=0)
    distance = np.linalg.norm(image - skin, axis=-1) * (radius < 1)
    mask = distance > 0.4 * np.percentile(distance, 98)
    area = mask.sum()

    rows, columns = np.nonzero(mask)
    shift = [int(size - 1 - 2 * round(centre)) for centre in (rows.mean(), columns.mean())]
    turned = np.roll(mask, shift, (0, 1))[::-1, ::-1]  # by half a turn about the centroid
    edge = sum((mask != np.roll(mask, 1, axis)).sum() for axis in (0, 1))
    density = np.log(image[mask] + 1.0)
    return {
        "asymmetry": (mask != turned).sum() / area,
        "border": edge**2 / area,
        "colour": density.std(axis=0).sum() + 2 * np.diff(density, axis=1).std(axis=0).sum(),
        "diameter": np.sqrt(area) / size,
    }


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, np.ndarray]]:
    """Each label's features, each an array of COUNT values."""
    features = {}
    for label in LABELS:
        rows = [_abcd(phantom_image(i, seed=5, image_size=64, label=label)) for i in range(COUNT)]
        features[label] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return features


@pytest.mark.parametrize("feature", ["asymmetry", "border", "colour", "diameter"])
def test_the_classes_differ_and_overlap(measured, feature):
    benign, malignant = (measured[label][feature] for label in LABELS)
    spread = np.sqrt((benign.var() + malignant.var()) / 2)
    assert malignant.mean() - benign.mean() > 0.5 * spread
    assert malignant.min() < np.quantile(benign, 0.9)
    assert benign.max() > np.quantile(malignant, 0.1)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="label must be one of"):
        phantom_image(0, seed=0, image_size=64, label="melanoma")
    for size in (MIN_SIZE - 1, MAX_SIZE + 1):
        with pytest.raises(ValueError, match="image_size must lie in"):
            phantom_image(0, seed=0, image_size=size)
