"""Each measure moves the right way, beside a floor that is one."""

import dataclasses

import numpy as np
import pytest

from medgan_jax.evaluation.protocol import PAIRINGS, evaluate, paired_scores
from medgan_jax.evaluation.quick import MIN_IMAGES
from medgan_jax.evaluation.sets import ImageSet
from medgan_jax.metrics import METRICS
from tests.evaluation.conftest import SPOILT


def judged(fakes, reals, train=None, **options):
    sets = [ImageSet(name, images) for name, images in (("fakes", fakes), ("reals", reals))]
    return evaluate(*sets, train is not None and ImageSet("train", train) or None, progress=False, **options)


def by_name(evaluation):
    return {figure.name: figure for figure in evaluation.figures}


@pytest.fixture(scope="module")
def results(phantoms):
    """Fakes 0 to 29 are reals like the others, or spoilt ones; training images 30 to 59; reals 60 to 99."""
    sets = {"real": phantoms[:30]} | {name: spoil(phantoms[:30]) for name, spoil in SPOILT.items()}
    return {name: by_name(judged(fakes, phantoms[60:], phantoms[30:60])) for name, fakes in sets.items()}


def test_reals_are_at_their_floor(results):
    """Two sets of the same distribution: an interval of one holds the other, or nearly."""
    for name, figure in results["real"].items():
        if figure.floor:
            gap = max(figure.value.low - figure.floor.high, figure.floor.low - figure.value.high)
            assert gap <= 0, name
    assert results["real"]["copies"].value.value <= 2 / 30


WORSE = {
    "noisy": ["psnr", "ssim", "mdsi", "swd_32", "kid", "fid", "precision", "recall", "density", "coverage"],
    "blurred": ["swd_32", "kid", "fid", "precision", "recall", "density", "coverage"],
    "dark": ["psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi", "kid", "fid", "precision", "recall", "density", "coverage"],
    "duplicated": ["swd_32", "fid", "recall", "coverage", "similarity"],
    "gridded": ["checkerboard_2", "swd_32", "recall", "density", "coverage"],
}


@pytest.mark.parametrize(("spoilt", "name"), [(spoilt, name) for spoilt, names in WORSE.items() for name in names])
def test_what_is_spoilt_is_worse_than_the_floor(results, spoilt, name):
    """Beyond its interval."""
    figure = results[spoilt][name]
    if figure.better == "higher":
        assert figure.value.value < figure.floor.low
    else:
        assert figure.value.value > figure.floor.high


def test_what_a_measure_cannot_see_leaves_it_at_its_floor(results):
    """Normalised patches know no darkness, and copies of three images have no fault of their own."""
    for spoilt, name in (("dark", "swd_32"), ("duplicated", "precision"), ("noisy", "checkerboard_2")):
        figure = results[spoilt][name]
        assert figure.floor.low <= figure.value.value <= figure.floor.high


def test_copies_are_seen(phantoms):
    copied = np.concatenate([phantoms[30:45, :, ::-1], phantoms[:15]])  # mirrored training images among others
    figure = by_name(judged(copied, phantoms[60:], phantoms[30:60]))["copies"]
    assert figure.value.value >= 0.5


def test_the_same_call_gives_the_same_numbers(phantoms):
    first, second = (judged(phantoms[:30], phantoms[30:], seed=3) for _ in range(2))
    assert [dataclasses.astuple(f) for f in first.figures] == [dataclasses.astuple(f) for f in second.figures]
    other = judged(phantoms[:30], phantoms[30:], seed=4)
    assert by_name(other)["kid"].floor != by_name(first)["kid"].floor  # other halves


def test_fakes_and_floor_are_of_equal_number(phantoms):
    few = judged(phantoms[:25], phantoms[25:])
    assert few.protocol["fakes"].startswith("25 of")
    assert few.protocol["floor"].startswith("25 of")
    many = judged(phantoms[:60], phantoms[60:])
    assert many.protocol["fakes"].startswith("20 of")
    assert "copies: needs the training images" in many.skipped


def test_too_few_images_leave_the_rest(phantoms):
    result = judged(phantoms[:5], phantoms[50:])
    assert set(by_name(result)) == {"psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi"}
    (distances,) = [text for text in result.skipped if "KID" in text]
    assert f"needs {MIN_IMAGES} images of each set, and one has 5" in distances
    assert any("MS-SSIM: needs images of 161 px" in text for text in result.skipped)


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


def test_a_flat_image_can_be_stretched(phantoms):
    flat = np.full_like(phantoms[:4], 128)
    scores = paired_scores(flat, phantoms[:4], list(METRICS)[:2], pairing="medimagegan")
    assert all(np.all(np.isfinite(values)) for values in scores.values())


def test_identical_pairs_have_80_db(phantoms):
    scores = paired_scores(phantoms[:3], phantoms, ["psnr"], pairing="nearest")
    np.testing.assert_array_equal(scores["psnr"], [80, 80, 80])


def test_grey_images(phantoms):
    result = judged(phantoms[:30, ..., :1], phantoms[30:, ..., :1])
    assert {"mdsi", "swd_32", "kid", "checkerboard_2", "similarity"} <= set(by_name(result))
