"""Each metric moves the right way, beside the same metric of reals."""

import dataclasses

import numpy as np
import pytest

from medgan_jax.evaluation.image_sets import ImageSet
from medgan_jax.evaluation.protocol import MIN_IMAGES, PAIRINGS, at_low_resolution, evaluate, paired_scores, verdict
from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.metrics.distribution.features import PYRAMID
from medgan_jax.metrics.paired import METRICS
from tests.evaluation.conftest import SIZE, SPOILT

pytestmark = pytest.mark.slow

NAMES = [name for name, metric in METRICS.items() if metric.min_size <= SIZE]  # always all: one program


def evaluated(fakes, reals, train=None, *, replicates=20, **options):
    sets = [ImageSet(name, images) for name, images in (("fakes", fakes), ("reals", reals))]
    train = None if train is None else ImageSet("train", train)
    return evaluate(*sets, train, **{"replicates": replicates, "features": PYRAMID, "progress": False} | options)


def by_name(evaluation):
    return {figure.name: figure for figure in evaluation.figures}


@pytest.fixture(scope="module")
def results(phantoms):
    """Fakes are reals like the others, or spoilt ones."""
    fakes, train, reals = phantoms[:32], phantoms[32:64], phantoms[64:]
    sets = {"real": fakes} | {name: spoil(fakes) for name, spoil in SPOILT.items()}
    return {name: by_name(evaluated(fakes, reals, train)) for name, fakes in sets.items()}


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


def test_reals_are_where_reals_are(results):
    """Two sets of the same distribution: their intervals are less than one width apart."""
    for name, figure in results["real"].items():
        gap = max(figure.value.low - figure.reals.high, figure.reals.low - figure.value.high)
        assert gap <= figure.reals.high - figure.reals.low, name
    assert results["real"]["memorization"].value.value <= 2 / 32
    assert results["real"]["memorization"].verdict == "good"


@pytest.mark.parametrize(
    ("spoilt", "names"),
    {
        "noisy": ["psnr", "ssim", "mdsi", "swd_20", "kid", "fid", "coverage", "checkerboard_2"],
        "dark": ["psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi", "kid", "fid", "precision", "recall", "density"],
        "duplicated": ["swd_20", "fid", "recall", "coverage", "similarity"],
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
    for spoilt, name in (("dark", "swd_20"), ("duplicated", "precision")):
        figure = results[spoilt][name]
        assert figure.value.low <= figure.reals.high and figure.reals.low <= figure.value.high, name


def test_every_fake_is_searched_for_copies(phantoms):
    """Also where metrics of sets take as many as there are training images; turned and mirrored ones too.

    A single one is no matter of chance, however few images were held out.
    """
    fakes = np.concatenate([phantoms[:31], phantoms[50:51, :, ::-1]])
    result = evaluated(fakes, phantoms[76:], phantoms[50:62])
    figure = by_name(result)["memorization"]
    assert figure.value.value >= 1 / 32 and figure.verdict == "short"
    assert "Share of 32 " in figure.title
    np.testing.assert_array_equal(result.closest[0][0], fakes[31])
    np.testing.assert_array_equal(result.closest[1][0], fakes[31])
    assert result.memorized[0] == (31, 0, 0)
    assert len(result.memorized) == round(32 * figure.value.value)


def test_a_real_that_was_trained_on_hides_no_copy(phantoms):
    leaked = np.concatenate([phantoms[77:], phantoms[30:31]])
    figures = by_name(evaluated(phantoms[30:46], leaked, phantoms[30:46]))
    assert figures["memorization"].value.value == 1 and figures["memorization"].verdict == "poor"
    assert "WARNING: 1 of the reals are training images" in figures["memorization"].note
    assert figures["copying_z"].value.high < -3 < figures["copying_z"].reals.value


def test_what_is_as_near_to_unseen_images_is_no_memory(phantoms):
    """Of the same images, noisy: as many of the training images and of others, or of the training images alone."""
    train, unseen = phantoms[:16], phantoms[16:32]
    for number, share, of_unseen, word in ((32, 1 / 2, 1 / 2, "short"), (16, 1, 0, "poor")):
        noise = np.random.default_rng(0).normal(0, 2, (number, *phantoms.shape[1:]))
        fakes = np.uint8(np.clip(phantoms[:number] + noise, 0, 255))
        figure = by_name(evaluated(fakes, unseen, train))["memorization"]
        assert (figure.value.value, figure.reals.value, figure.verdict) == (share, of_unseen, word)
        assert figure.reals.low <= of_unseen <= figure.reals.high


def test_the_same_call_gives_the_same_numbers(phantoms):
    """And compares fakes with as many reals."""
    first, again, other = (evaluated(phantoms[:10], phantoms[10:32], seed=seed, replicates=10) for seed in (3, 3, 4))
    assert [dataclasses.astuple(f) for f in first.figures] == [dataclasses.astuple(f) for f in again.figures]
    assert by_name(other)["kid"].reals != by_name(first)["kid"].reals  # other halves
    assert first.protocol["fakes"].startswith("10 of")
    assert first.protocol["reals"].startswith("10 of")


@pytest.mark.parametrize(("fakes", "reals"), [(2, 16), (16, 14)])
def test_too_few_images_leave_the_rest(phantoms, fakes, reals):
    result = evaluated(phantoms[:fakes], phantoms[50 : 50 + reals])
    assert set(by_name(result)) == set(NAMES)
    (distances,) = [text for text in result.skipped if "KID" in text]
    fewest = min(fakes, reals // 2)
    assert f"needs {MIN_IMAGES} images of each set, and one has {fewest}" in distances
    assert result.protocol["fakes"].startswith(f"{fewest} of")
    assert any("MS-SSIM: needs images of 161 px" in text for text in result.skipped)
    assert "memorization: needs the training images (train)" in result.skipped
    assert all(title in str(result) for title in ("KID, lower is better: not measured", "copies: memorization"))


def test_a_single_fake_is_no_set(phantoms):
    assert evaluated(phantoms[:1], phantoms[20:24]).figures == ()


def test_a_copy_is_named_among_few(phantoms):
    result = evaluated(phantoms[[3, 50]], phantoms[20:24], phantoms[:10])
    assert "memorization: WARNING: all the same, 1 of the fakes are training images" in result.skipped


def test_ten_images_have_every_metric_by_a_pretrained_network(phantoms):
    """The network is what features are of where none are named."""
    fakes = ImageSet("fakes", SPOILT["noisy"](phantoms[:10]), trained_through="their-network")
    result = evaluate(fakes, ImageSet("reals", phantoms[10:30]), replicates=20, progress=False)
    figures = by_name(result)
    every = {"ssim", "mdsi", "swd_20", "kid", "fid", "recall", "coverage", "checkerboard_2", "similarity"}
    assert every <= set(figures)
    assert all(np.isfinite(figure.value.value) for figure in result.figures)
    assert result.protocol["features"].startswith("efficientnet-lite1: 1,280 pooled activations at 224 px, or four")
    assert result.protocol["trained_through"] == "their-network, which must not judge the fakes"
    assert figures["kid"].title == "KID, by efficientnet-lite1"
    assert figures["kid"].value.low > figures["kid"].reals.high


def test_medimagegan_pairs_are_those_of_the_files(phantoms):
    """The i-th with the i-th, whatever the other metrics choose."""
    result = by_name(evaluated(phantoms[:4], phantoms[40:48], pairing="medimagegan"))
    expected = paired_scores(phantoms[:4], phantoms[40:44], NAMES, pairing="medimagegan")["ssim"].mean()
    assert result["ssim"].value.value == pytest.approx(expected, rel=1e-5)
    reals = paired_scores(phantoms[44:48], phantoms[40:44], NAMES, pairing="medimagegan")["ssim"].mean()
    assert result["ssim"].reals.value == pytest.approx(reals, rel=1e-5)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairings(phantoms, pairing):
    fakes, reals = phantoms[:10], phantoms[10:40]
    scores = paired_scores(fakes, reals, NAMES, pairing=pairing, seed=1)
    assert {len(values) for values in scores.values()} == {10}
    x, y = fakes.astype(np.float32) / 255, reals.astype(np.float32) / 255
    psnr = np.array([[float(-10 * np.log10(np.mean((a - b) ** 2))) for b in y] for a in x])
    if pairing == "nearest":
        np.testing.assert_allclose(scores["psnr"], psnr.max(1), rtol=1e-4)  # at so few px nothing is averaged away
    elif pairing == "random":
        assert all(np.min(np.abs(row - value)) < 1e-3 for row, value in zip(psnr, scores["psnr"], strict=True))
        again = paired_scores(fakes, reals, NAMES, pairing=pairing, seed=2)["psnr"]
        assert np.any(again != scores["psnr"])
    else:
        low, high = (f(x, (1, 2, 3)).reshape(-1, 1, 1, 1) for f in (np.min, np.max))
        x = (x - low) / (high - low)
        low, high = (f(y, (1, 2, 3)).reshape(-1, 1, 1, 1) for f in (np.min, np.max))
        y = ((y - low) / (high - low))[:10]
        np.testing.assert_allclose(scores["ssim"], METRICS["ssim"].function(x, y), atol=1e-4)


def test_flat_and_identical_pairs_have_finite_scores(phantoms):
    flat = np.full_like(phantoms[:4], 128)
    scores = paired_scores(flat, phantoms[:4], NAMES, pairing="medimagegan")
    assert all(np.all(np.isfinite(values)) for values in scores.values())
    np.testing.assert_array_equal(paired_scores(phantoms[:3], phantoms, NAMES, pairing="nearest")["psnr"], 80)
