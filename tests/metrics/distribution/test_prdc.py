"""Precision, recall, density and coverage against loops over their definitions."""

import numpy as np
import pytest

from medgan_jax.metrics.distribution import prdc as module
from medgan_jax.metrics.distribution.prdc import _squared_distances, manifold


def radius(points, i, k):
    return sorted(np.linalg.norm(points[i] - other) for j, other in enumerate(points) if j != i)[k - 1]


def by_loops(fakes, reals, narrow, wide):
    def balls(points, k):
        return [(point, radius(points, i, k)) for i, point in enumerate(points)]

    def inside(point, ball):
        return np.linalg.norm(point - ball[0]) <= ball[1]

    return {
        "precision": np.mean([any(inside(x, ball) for ball in balls(reals, narrow)) for x in fakes]),
        "recall": np.mean([any(inside(x, ball) for ball in balls(fakes, narrow)) for x in reals]),
        "density": np.mean([sum(inside(x, ball) for ball in balls(reals, wide)) / wide for x in fakes]),
        "coverage": np.mean([any(inside(x, ball) for x in fakes) for ball in balls(reals, wide)]),
    }


@pytest.mark.parametrize(("narrow", "wide"), [(3, 5), (1, 2), (4, 1)])
def test_loops(narrow, wide):
    generator = np.random.default_rng(0)
    fakes, reals = generator.normal(0.7, 1, (18, 4)), generator.normal(size=(25, 4))
    estimates = manifold(fakes, reals, neighbours=wide, precision_neighbours=narrow)
    for name, expected in by_loops(fakes, reals, narrow, wide).items():
        assert estimates[name].value == pytest.approx(expected, rel=1e-12), name
        assert estimates[name].low <= expected <= estimates[name].high + 1e-12


def test_distances_are_exact_where_it_matters():
    """Copies are at 0, and near copies not lost to rounding, however far from the origin."""
    x = np.random.default_rng(0).normal(1000, 1, (6, 2048))
    y = np.concatenate([x, x + 1e-9])
    distances = _squared_distances(x, y)
    direct = ((x[:, None] - y) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances, direct, rtol=1e-6)
    assert np.array_equal(np.diag(distances), np.zeros(6))


def test_replicates_count_neighbours_as_often_as_drawn(monkeypatch):
    generator = np.random.default_rng(0)
    fakes, reals = generator.normal(0.5, 1, (12, 3)), generator.normal(size=(15, 3))
    fake_counts, real_counts = (np.bincount(generator.integers(n, size=n), minlength=n) for n in (12, 15))

    def radius_of(points, counts, i, k):
        others = [np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i for _ in range(counts[j])]
        return sorted(others)[k - 1]

    fake_drawn, real_drawn = np.flatnonzero(fake_counts), np.flatnonzero(real_counts)
    distances = np.linalg.norm(reals[:, None] - fakes, axis=2)
    wide = {i: radius_of(reals, real_counts, i, 5) for i in real_drawn}
    narrow = {i: radius_of(reals, real_counts, i, 3) for i in real_drawn}
    narrow_fake = {j: radius_of(fakes, fake_counts, j, 3) for j in fake_drawn}
    inside = {(i, j): distances[i, j] <= wide[i] for i in real_drawn for j in fake_drawn}
    expected = {
        "precision": sum(
            fake_counts[j] / 12 for j in fake_drawn if any(distances[i, j] <= narrow[i] for i in real_drawn)
        ),
        "recall": sum(
            real_counts[i] / 15 for i in real_drawn if any(distances[i, j] <= narrow_fake[j] for j in fake_drawn)
        ),
        "density": sum(real_counts[i] * fake_counts[j] / 12 / 5 for (i, j), within in inside.items() if within),
        "coverage": sum(real_counts[i] / 15 for i in real_drawn if any(inside[i, j] for j in fake_drawn)),
    }

    def once(statistic, sizes, **_):
        values = statistic(fake_counts / 12, real_counts / 15)
        return {name: module.Estimate(value, value, value) for name, value in values.items()}

    monkeypatch.setattr(module, "bootstrap", once)
    assert {name: estimate.value for name, estimate in manifold(fakes, reals).items()} == pytest.approx(expected)


def test_identical_sets():
    x = np.random.default_rng(0).normal(5, 1, (77, 33))  # odd sizes round in different ways by place
    estimates = manifold(x, x[::-1])
    values = {name: estimate.value for name, estimate in estimates.items()}
    assert values == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1}, rel=1e-12)
    assert all(estimate.high <= 1 for name, estimate in estimates.items() if name != "density")


def test_sets_far_apart():
    x = np.random.default_rng(0).normal(size=(20, 6))
    assert {name: estimate.value for name, estimate in manifold(x + 100, x).items()} == {
        "precision": 0,
        "recall": 0,
        "density": 0,
        "coverage": 0,
    }


def test_copies_of_few_reals_are_precise_and_cover_little():
    generator = np.random.default_rng(0)
    reals = generator.normal(size=(60, 10))
    estimates = manifold(np.repeat(reals[:5], 12, axis=0), reals)
    assert estimates["precision"].value == pytest.approx(1)
    assert estimates["recall"].value == pytest.approx(5 / 60)  # balls of radius 0 around the copies
    assert estimates["coverage"].value < 0.7


def test_noise_lowers_all():
    generator = np.random.default_rng(0)
    reals, fakes, noise = generator.normal(size=(3, 80, 10))
    clean, noisy = manifold(fakes, reals), manifold(fakes + 2 * noise, reals)
    for name in ("precision", "density", "coverage"):
        assert noisy[name].value < clean[name].value - 0.1, name
        assert noisy[name].high < clean[name].high, name


def test_precision_and_recall_change_places_with_the_sets():
    generator = np.random.default_rng(0)
    fakes, reals = generator.normal(0.7, 1, (18, 4)), generator.normal(size=(25, 4))
    one, other = manifold(fakes, reals, replicates=0), manifold(reals[::-1], fakes[::-1], replicates=0)
    assert one["precision"].value == pytest.approx(other["recall"].value)
    assert one["recall"].value == pytest.approx(other["precision"].value)


def test_intervals_cover_the_mean_of_many_sets():
    generator = np.random.default_rng(0)
    estimates = [
        manifold(generator.normal(0.5, 1, (60, 4)), generator.normal(size=(60, 4)), seed=seed, replicates=60)
        for seed in range(60)
    ]
    for name in estimates[0]:
        mean = np.mean([estimate[name].value for estimate in estimates])
        covered = np.mean([estimate[name].low <= mean <= estimate[name].high for estimate in estimates])
        assert covered >= 0.8, name


def test_no_replicates():
    generator = np.random.default_rng(0)
    for estimate in manifold(*generator.normal(size=(2, 20, 4)), replicates=0).values():
        assert estimate.low == estimate.value == estimate.high


def test_refuses():
    x = np.zeros((5, 3))
    with pytest.raises(ValueError, match="at least 6 images, got 5 and 5"):
        manifold(x, x)
    with pytest.raises(ValueError, match="at least 1"):
        manifold(x, x, neighbours=0)
