"""Figures of classifiers against their definitions, and verdicts on trials whose truth is known."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from medgan_jax.proving.arms import Arm, all_arms
from medgan_jax.proving.figures import KINDS, Fold, auc, average_precision, brier, judge, sensitivity

SCORES = np.array([0.9, 0.8, 0.7, 0.7, 0.4, 0.3, 0.3, 0.1])
POSITIVE = np.array([1, 0, 1, 0, 1, 0, 0, 0], bool)
ONCE = np.ones((1, 8))


def test_auc_is_the_share_of_pairs_in_order():
    expected = mannwhitneyu(SCORES[POSITIVE], SCORES[~POSITIVE]).statistic / 15
    assert auc(SCORES, POSITIVE, ONCE)[0] == pytest.approx(expected)


def test_average_precision_and_sensitivity_by_hand():
    # Precision at the positives: 1/1, 2/4 (a tie is counted whole), 3/5.
    assert average_precision(SCORES, POSITIVE, ONCE)[0] == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert sensitivity(SCORES, POSITIVE, ONCE)[0] == pytest.approx(1 / 3)  # no negative of five may be taken
    assert brier(np.array([[0.8, 0.2], [0.5, 0.5]]), np.array([0, 1]), np.ones((1, 2)))[0] == pytest.approx(0.29)


@pytest.mark.parametrize("name", KINDS)
def test_a_weight_is_so_many_copies(name):
    random = np.random.default_rng(0)
    scores, labels = random.dirichlet(np.ones(3), 30), np.arange(30) % 3
    counts = 1 + random.integers(0, 2, 30) * (name != "calibration_error")  # whose bins are of so many images
    kind = KINDS[name]
    weighted = kind.compute(scores, labels, 1, counts[None].astype(float))
    copied = kind.compute(np.repeat(scores, counts, 0), np.repeat(labels, counts), 1, np.ones((1, counts.sum())))
    assert weighted == pytest.approx(copied)


def trial(random, shift):
    """Three folds of 100 images; `shift` moves the scores of positives in arms with fakes, all scores else alike."""
    folds = []
    for _ in range(3):
        labels = (np.arange(100) < 30).astype(int)
        signal = labels + random.normal(scale=0.9, size=100)
        scores = {}
        for arm in all_arms():
            logits = signal + random.normal(scale=0.2, size=(3, 100)) + shift * arm.has_fakes * labels
            positive = 1 / (1 + np.exp(-logits))
            scores[arm.name] = np.stack([1 - positive, positive], -1)
        folds.append(Fold(labels, np.arange(100) // 2, scores))
    return folds


@pytest.mark.parametrize("shift, word", [(0.8, "gain"), (-0.5, "harm"), (0.0, "no difference shown")])
def test_the_verdict_is_right(shift, word):
    words = [
        judge(trial(np.random.default_rng(seed), shift), all_arms(), positive=1, replicates=200).word
        for seed in range(3)
    ]
    assert words == [word] * 3


def test_equal_arms_differ_by_nothing_and_intervals_hold_the_difference():
    verdict = judge(trial(np.random.default_rng(0), 0.8), all_arms(), positive=1, replicates=200)
    results = {result.arm.name: result for result in verdict.results}
    assert results[verdict.reference].differences["auc"].high == 0
    for result in results.values():
        apart = result.figures["auc"].value - results[verdict.reference].figures["auc"].value
        assert result.differences["auc"].value == pytest.approx(apart)
    few = judge(trial(np.random.default_rng(0), 0.8), all_arms((1.0,)), positive=1, replicates=200)
    alone = {result.arm.name: result for result in few.results}["oversampled_all_1"].differences["brier"]
    of_many = results["oversampled_all_1"].differences["brier"]
    assert of_many.high - of_many.low > alone.high - alone.low  # they hold for more arms at once


def test_a_patient_with_images_of_both_classes_is_drawn_among_its_like():
    """All positives are of patients whose first image is negative: no replicate may be without positives."""
    (fold, *_) = trial(np.random.default_rng(0), 0.3)
    groups = np.concatenate([np.arange(30), np.arange(70)])  # the first 30 images are positive
    order = np.argsort(np.arange(100) < 30, kind="stable")
    mixed = Fold(fold.labels[order], groups[order], {name: s[:, order] for name, s in fold.scores.items()})
    verdict = judge([mixed], all_arms(), positive=1, replicates=200)
    assert np.isfinite([e.high for result in verdict.results for e in result.differences.values()]).all()


def test_images_of_one_patient_are_drawn_together():
    """With each patient's images thrice, intervals are as wide as without; by images they would be narrower."""
    random = np.random.default_rng(1)
    folds = trial(random, 0.3)
    apart = [Fold(f.labels, np.arange(100), f.scores) for f in folds]
    tripled = [
        Fold(np.tile(f.labels, 3), np.tile(np.arange(100), 3), {k: np.tile(s, (1, 3, 1)) for k, s in f.scores.items()})
        for f in folds
    ]
    arms = [Arm("plain"), Arm("oversampled"), Arm("oversampled", "all", 1.0)]
    widths = []
    for of_trial in (apart, tripled):
        estimate = judge(of_trial, arms, positive=1, replicates=400).results[2].figures["auc"]
        widths.append(estimate.high - estimate.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.02)
