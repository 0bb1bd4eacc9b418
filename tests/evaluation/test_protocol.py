"""Each metric moves the right way, beside the same metric of reals."""

import dataclasses

import numpy as np
import pytest

from medgan_jax.evaluation.image_sets import ImageSet
from medgan_jax.evaluation.protocol import MIN_IMAGES, PAIRINGS, at_low_resolution, evaluate, paired_scores, verdict
from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.metrics.distribution.features import PYRAMID
from medgan_jax.metrics.paired import METRICS
from tests.evaluation.conftest import SPOILT

pytestmark = pytest.mark.slow


def evaluated(fakes, reals, train=None, *, replicates=20, **options):
    sets = [ImageSet(name, images) for name, images in (("fakes", fakes), ("reals", reals))]
    train = None if train is None else ImageSet("train", train)
    return evaluate(*sets, train, **{"replicates": replicates, "features": PYRAMID, "progress": False} | options)


def by_name(evaluation):
    return {figure.name: figure for figure in evaluation.figures}


@pytest.fixture(scope="module")
def results(phantoms):
    """Fakes 0 to 29 are reals like the others, or spoilt ones; training images 30 to 59; reals 60 to 91."""
    sets = {"real": phantoms[:30]} | {name: spoil(phantoms[:30]) for name, spoil in SPOILT.items()}
    return {name: by_name(evaluated(fakes, phantoms[60:], phantoms[30:60])) for name, fakes in sets.items()}


def test_the_default_features_are_a_pretrained_networks(phantoms, small):
    result = evaluated(SPOILT["noisy"](phantoms[:20])[:, ::2, ::2], small[20:40], small[40:60], features=None)
    assert result.protocol["features"].startswith("efficientnet-lite1: 1,280 pooled activations at 224 px, or four")
    kid = by_name(result)["kid"]
    assert kid.title == "KID, by efficientnet-lite1" and kid.value.low > kid.reals.high


@pytest.mark.parametrize(
    ("better", "value", "word"),
    [
        ("lower", (0.3, 0.2, 0.5), "good"),  # the intervals meet
        ("lower", (0.4, 0.3, 0.5), "short"),
        ("lower", (0.6, 0.3, 0.9), "poor"),
        ("higher", (0.05, 0.0, 0.1), "poor"),
        ("higher", (0.9, 0.8, 1.0), "good"),
    ],
)
def test_a_figure_is_judged_by_its_interval_and_a_limit(better, value, word):
    limit = 0.5 if better == "lower" else 0.1
    assert verdict(Estimate(*value), Estimate(0.2, 0.15, 0.25), better=better, limit=limit) == word


@pytest.mark.parametrize(("copies", "word"), [(0, "good"), (1, "short"), (10, "poor")])
def test_copies_have_a_word(small, copies, word):
    """A single one is no matter of chance, however few images were held out."""
    fakes = np.concatenate([small[:copies, :, ::-1], small[16 : 46 - copies]])
    assert by_name(evaluated(fakes, small[80:], small[:16]))["memorization"].verdict == word


def test_reals_are_where_reals_are(results):
    """Two sets of the same distribution: their intervals are less than one width apart."""
    for name, figure in results["real"].items():
        gap = max(figure.value.low - figure.reals.high, figure.reals.low - figure.value.high)
        assert gap <= figure.reals.high - figure.reals.low, name
    assert results["real"]["memorization"].value.value <= 2 / 30


@pytest.mark.parametrize(
    ("spoilt", "names"),
    {
        "noisy": ["psnr", "ssim", "mdsi", "swd_32", "kid", "fid", "precision", "coverage", "checkerboard_2"],
        "dark": ["psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi", "kid", "fid", "precision", "recall", "density"],
        "duplicated": ["swd_32", "fid", "recall", "coverage", "similarity"],
    }.items(),
)
def test_what_is_spoilt_is_worse_than_reals(results, spoilt, names):
    """Beyond their interval."""
    for name in names:
        figure = results[spoilt][name]
        if figure.better == "higher":
            assert figure.value.value < figure.reals.low, name
        else:
            assert figure.value.value > figure.reals.high, name


@pytest.mark.parametrize(("size", "low"), [(64, 32), (130, 32), (32, 16), (17, 8)])
def test_low_resolution_is_that_of_block_means(size, low):
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    coarse, block = at_low_resolution(images), size // low
    assert coarse.shape == (2, low * block, low * block, 3)
    np.testing.assert_array_equal(coarse[:, ::block, ::block], coarse[:, block - 1 :: block, block - 1 :: block])
    expected = images[1, block : 2 * block, :block, 2].mean()
    assert coarse[1, block, 0, 2] == round(float(expected))


def test_what_a_metric_cannot_see_leaves_it_where_reals_are(results):
    """Normalised patches know no darkness, and copies of three images have no fault of their own."""
    for spoilt, name in (("dark", "swd_32"), ("duplicated", "precision")):
        figure = results[spoilt][name]
        assert figure.value.low <= figure.reals.high and figure.reals.low <= figure.value.high, name


@pytest.fixture(scope="module")
def small(phantoms):
    """Of one scale: 16 px."""
    return phantoms[:, ::2, ::2]


def test_every_fake_is_searched_for_copies(small):
    """Also where metrics of sets take as many as there are training images; turned and mirrored ones too."""
    fakes = np.concatenate([small[:31], small[50:51, :, ::-1]])
    result = evaluated(fakes, small[76:], small[50:62])
    figure = by_name(result)["memorization"]
    assert figure.value.value >= 1 / 32
    assert "Share of 32 " in figure.title
    np.testing.assert_array_equal(result.closest[0][0], fakes[31])
    np.testing.assert_array_equal(result.closest[1][0], fakes[31])
    assert result.memorized[0] == (31, 0, 0)
    assert len(result.memorized) == round(32 * figure.value.value)


def test_a_real_that_was_trained_on_hides_no_copy(small):
    leaked = np.concatenate([small[77:], small[30:31]])
    figures = by_name(evaluated(small[30:46], leaked, small[30:46]))
    assert figures["memorization"].value.value == 1
    assert "WARNING: 1 of the reals are training images" in figures["memorization"].note
    assert figures["copying_z"].value.high < -3 < figures["copying_z"].reals.value


def test_the_same_call_gives_the_same_numbers(small):
    first, second = (evaluated(small[:10], small[10:30], seed=3) for _ in range(2))
    assert [dataclasses.astuple(f) for f in first.figures] == [dataclasses.astuple(f) for f in second.figures]
    other = evaluated(small[:10], small[10:30], seed=4)
    assert by_name(other)["kid"].reals != by_name(first)["kid"].reals  # other halves


def test_fakes_and_reals_are_of_equal_number(small):
    few = evaluated(small[:10], small[10:40])
    assert few.protocol["fakes"].startswith("10 of")
    assert few.protocol["reals"].startswith("10 of")
    many = evaluated(small[:30], small[30:54])
    assert many.protocol["fakes"].startswith("12 of")
    assert "memorization: needs the training images" in many.skipped


@pytest.mark.parametrize(("fakes", "reals"), [(2, 40), (16, 16)])
def test_too_few_images_leave_the_rest(phantoms, fakes, reals):
    result = evaluated(phantoms[:fakes], phantoms[50 : 50 + reals])
    assert set(by_name(result)) == {name for name, metric in METRICS.items() if metric.min_size <= 32}
    (distances,) = [text for text in result.skipped if "KID" in text]
    assert f"needs {MIN_IMAGES} images of each set, and one has {min(fakes, reals // 2)}" in distances
    assert any("MS-SSIM: needs images of 161 px" in text for text in result.skipped)


def test_ten_images_of_any_size_have_every_metric(phantoms):
    """A size that does not halve; grey images."""
    images = phantoms[:30, :17, :17, :1]
    result = evaluated(images[:10], images[10:])
    every = {"ssim", "mdsi", "swd_17", "kid", "fid", "recall", "coverage", "checkerboard_2", "similarity"}
    assert every <= set(by_name(result))
    assert all(np.isfinite(figure.value.value) for figure in result.figures)


def test_a_single_fake_is_no_set(phantoms):
    assert evaluated(phantoms[:1], phantoms[20:24]).figures == ()


def test_medimagegan_pairs_are_those_of_the_files(small):
    """The i-th with the i-th, whatever the other metrics choose."""
    result = by_name(evaluated(small[:4], small[40:48], pairing="medimagegan"))
    expected = paired_scores(small[:4], small[40:44], ["ssim"], pairing="medimagegan")["ssim"].mean()
    assert result["ssim"].value.value == pytest.approx(expected, rel=1e-5)
    reals = paired_scores(small[44:48], small[40:44], ["ssim"], pairing="medimagegan")["ssim"].mean()
    assert result["ssim"].reals.value == pytest.approx(reals, rel=1e-5)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairings(phantoms, pairing):
    fakes, reals = phantoms[:10], phantoms[10:40]
    scores = paired_scores(fakes, reals, ["psnr", "ssim"], pairing=pairing, seed=1)
    assert {len(values) for values in scores.values()} == {10}
    x, y = fakes.astype(np.float32) / 255, reals.astype(np.float32) / 255
    psnr = np.array([[float(-10 * np.log10(np.mean((a - b) ** 2))) for b in y] for a in x])
    if pairing == "nearest":
        np.testing.assert_allclose(scores["psnr"], psnr.max(1), rtol=1e-4)  # at 32 px nothing is averaged away
    elif pairing == "random":
        assert all(np.min(np.abs(row - value)) < 1e-3 for row, value in zip(psnr, scores["psnr"], strict=True))
        again = paired_scores(fakes, reals, ["psnr"], pairing=pairing, seed=2)["psnr"]
        assert np.any(again != scores["psnr"])
    else:
        low, high = (f(x, (1, 2, 3)).reshape(-1, 1, 1, 1) for f in (np.min, np.max))
        x = (x - low) / (high - low)
        low, high = (f(y, (1, 2, 3)).reshape(-1, 1, 1, 1) for f in (np.min, np.max))
        y = ((y - low) / (high - low))[:10]
        np.testing.assert_allclose(scores["ssim"], METRICS["ssim"].function(x, y), atol=1e-4)


def test_flat_and_identical_pairs_have_finite_scores(phantoms):
    flat = np.full_like(phantoms[:4], 128)
    scores = paired_scores(flat, phantoms[:4], ["psnr", "ssim"], pairing="medimagegan")
    assert all(np.all(np.isfinite(values)) for values in scores.values())
    np.testing.assert_array_equal(paired_scores(phantoms[:3], phantoms, ["psnr"], pairing="nearest")["psnr"], 80)
