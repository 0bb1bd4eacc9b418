"""Precision, recall, density and coverage against loops over their definitions."""

import numpy as np
import pytest

from medgan_jax.metrics.distribution.bootstrap import bootstrap
from medgan_jax.metrics.distribution.prdc import prdc


def by_loops(fakes, reals, narrow, wide, fake_counts=None, real_counts=None):
    """Of sets in which an image is present as often as the counts say; its ball counts the other images only."""
    counts = [np.ones(len(x), int) if n is None else n for x, n in ((fakes, fake_counts), (reals, real_counts))]

    def balls(points, counts, k):
        def radius(i):
            others = [(np.linalg.norm(points[i] - points[j]), counts[j]) for j in range(len(points)) if j != i]
            return sorted(distance for distance, count in others for _ in range(count))[k - 1]

        return [(points[i], radius(i), counts[i]) for i in range(len(points)) if counts[i]]

    def inside(point, ball):
        return np.linalg.norm(point - ball[0]) <= ball[1] * (1 + 1e-12)

    def share(points, counts, holds):
        return sum(count * holds(point) for point, count in zip(points, counts, strict=True)) / sum(counts)

    narrow_fakes, narrow_reals = balls(fakes, counts[0], narrow), balls(reals, counts[1], narrow)
    wide_reals = balls(reals, counts[1], wide)
    drawn = fakes[counts[0] > 0]
    return {
        "precision": share(fakes, counts[0], lambda x: any(inside(x, ball) for ball in narrow_reals)),
        "recall": share(reals, counts[1], lambda x: any(inside(x, ball) for ball in narrow_fakes)),
        "density": share(fakes, counts[0], lambda x: sum(ball[2] * inside(x, ball) for ball in wide_reals) / wide),
        "coverage": sum(ball[2] * any(inside(x, ball) for x in drawn) for ball in wide_reals) / sum(counts[1]),
    }


@pytest.mark.parametrize(("narrow", "wide"), [(3, 5), (4, 1)])
def test_loops(narrow, wide):
    """Also in replicates, where a neighbour counts as often as it was drawn."""
    generator = np.random.default_rng(0)
    fakes, reals = generator.normal(0.7, 1, (18, 4)), generator.normal(size=(25, 4))

    def loops(fake_weights, real_weights):
        counts = (np.rint(weights * len(weights)).astype(int) for weights in (fake_weights, real_weights))
        return by_loops(fakes, reals, narrow, wide, *counts)

    expected = bootstrap(loops, (18, 25), seed=4, replicates=6, bounds=(0, np.inf))
    found = prdc(fakes, reals, neighbours=wide, precision_neighbours=narrow, seed=4, replicates=6)
    for name, value in by_loops(fakes, reals, narrow, wide).items():
        assert found[name].value == pytest.approx(value, rel=1e-12), name
        highest = expected[name].high if name == "density" else min(1, expected[name].high)
        assert (found[name].low, found[name].high) == pytest.approx((expected[name].low, highest), rel=1e-9), name


def test_copies_are_neighbours_however_far_from_the_origin():
    """Each near pair is a neighbourhood of its own: a distance of 1e-9 beside a norm of 1e4 is not lost to rounding."""
    x = np.random.default_rng(0).normal(1000, 1, (6, 512))
    pairs = np.concatenate([x, x + 1e-9])
    inside, outside = pairs + 0.4e-9, pairs + 1e-3
    options = {"neighbours": 1, "precision_neighbours": 1, "replicates": 0}
    assert prdc(inside, pairs, **options)["precision"].value == 1
    assert prdc(outside, pairs, **options)["precision"].value == 0
    assert prdc(pairs, pairs[::-1], **options)["density"].value == pytest.approx(2)  # the image and its neighbour


def test_identical_sets():
    x = np.random.default_rng(0).normal(5, 1, (77, 33))  # odd sizes round in different ways by place
    estimates = prdc(x, x[::-1])
    values = {name: estimate.value for name, estimate in estimates.items()}
    assert values == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1}, rel=1e-12)
    assert all(estimate.high <= 1 for name, estimate in estimates.items() if name != "density")


def test_sets_far_apart():
    x = np.random.default_rng(0).normal(size=(20, 6))
    assert all(estimate.value == 0 for estimate in prdc(x + 100, x).values())


def test_copies_of_few_reals_are_precise_and_cover_little():
    reals = np.random.default_rng(0).normal(size=(60, 10))
    estimates = prdc(np.repeat(reals[:5], 12, axis=0), reals)
    assert estimates["precision"].value == pytest.approx(1)
    assert estimates["recall"].value == pytest.approx(5 / 60)  # balls of radius 0 around the copies
    assert estimates["coverage"].value < 0.7


def test_noise_lowers_all():
    generator = np.random.default_rng(0)
    reals, fakes, noise = generator.normal(size=(3, 80, 10))
    clean, noisy = prdc(fakes, reals), prdc(fakes + 2 * noise, reals)
    for name in ("precision", "density", "coverage"):
        assert noisy[name].value < clean[name].value - 0.1, name
        assert noisy[name].high < clean[name].high, name


def test_precision_and_recall_change_places_with_the_sets():
    generator = np.random.default_rng(0)
    fakes, reals = generator.normal(0.7, 1, (18, 4)), generator.normal(size=(25, 4))
    one, other = prdc(fakes, reals, replicates=0), prdc(reals[::-1], fakes[::-1], replicates=0)
    assert one["precision"].value == pytest.approx(other["recall"].value)
    assert one["recall"].value == pytest.approx(other["precision"].value)
    assert all(estimate.low == estimate.value == estimate.high for estimate in one.values())


def test_intervals_cover_the_mean_of_many_sets():
    generator = np.random.default_rng(0)
    estimates = [
        prdc(generator.normal(0.5, 1, (60, 4)), generator.normal(size=(60, 4)), seed=seed, replicates=60)
        for seed in range(60)
    ]
    for name in estimates[0]:
        mean = np.mean([estimate[name].value for estimate in estimates])
        covered = np.mean([estimate[name].low <= mean <= estimate[name].high for estimate in estimates])
        assert covered >= 0.8, name


def test_refuses():
    x = np.zeros((5, 3))
    with pytest.raises(ValueError, match="at least 6 images, got 5 and 5"):
        prdc(x, x)
    with pytest.raises(ValueError, match="at least 1"):
        prdc(x, x, neighbours=0)
