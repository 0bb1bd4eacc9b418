"""Each measure moves the right way, beside a floor that is one."""

import dataclasses
import functools

import numpy as np
import pytest

from medgan_jax.evaluation import protocol
from medgan_jax.evaluation.image_sets import ImageSet
from medgan_jax.evaluation.protocol import MIN_IMAGES, PAIRINGS, evaluate, paired_scores
from medgan_jax.metrics.paired import METRICS
from tests.evaluation.conftest import SPOILT


@pytest.fixture(scope="module", autouse=True)
def few_replicates():
    """Of the slowest measure; what is asserted here is far outside its intervals."""
    with pytest.MonkeyPatch.context() as patch:
        fewer = functools.partial(protocol.sliced_wasserstein, replicates=20)
        patch.setattr(protocol, "sliced_wasserstein", fewer)
        yield


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
    assert figure.value.value == pytest.approx(0.5, abs=0.1)
    assert figure.floor.value < 0.2


def test_every_fake_is_searched_for_copies(phantoms):
    """Also where measures between sets take as many as there are training images."""
    result = judged(phantoms[:51], phantoms[62:], phantoms[50:62])
    assert by_name(result)["copies"].value.value >= 1 / 51
    assert "Share of 51 " in by_name(result)["copies"].title
    np.testing.assert_array_equal(result.closest[0][0], phantoms[50])


def test_a_real_that_was_trained_on_hides_no_copy(phantoms):
    leaked = np.concatenate([phantoms[62:], phantoms[30:31]])
    figure = by_name(judged(phantoms[30:60], leaked, phantoms[30:60]))["copies"]
    assert figure.value.value == 1
    assert "WARNING: 1 of the reals are training images" in figure.note


@pytest.fixture
def small(phantoms):
    """Of one scale: 16 px."""
    return phantoms[:, ::2, ::2]


def test_the_same_call_gives_the_same_numbers(small):
    first, second = (judged(small[:30], small[30:], seed=3) for _ in range(2))
    assert [dataclasses.astuple(f) for f in first.figures] == [dataclasses.astuple(f) for f in second.figures]
    other = judged(small[:30], small[30:], seed=4)
    assert by_name(other)["kid"].floor != by_name(first)["kid"].floor  # other halves


def test_fakes_and_floor_are_of_equal_number(small):
    few = judged(small[:25], small[25:])
    assert few.protocol["fakes"].startswith("25 of")
    assert few.protocol["floor"].startswith("25 of")
    many = judged(small[:60], small[60:])
    assert many.protocol["fakes"].startswith("20 of")
    assert "copies: needs the training images" in many.skipped


@pytest.mark.parametrize(("fakes", "reals"), [(2, 50), (9, 50), (20, 19)])
def test_too_few_images_leave_the_rest(phantoms, fakes, reals):
    result = judged(phantoms[:fakes], phantoms[50 : 50 + reals])
    assert set(by_name(result)) == {"psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi"}
    (distances,) = [text for text in result.skipped if "KID" in text]
    assert f"needs {MIN_IMAGES} images of each set, and one has {min(fakes, reals // 2)}" in distances
    assert any("MS-SSIM: needs images of 161 px" in text for text in result.skipped)


@pytest.mark.parametrize("size", [16, 17, 31])
def test_twenty_images_of_any_size_have_every_measure(phantoms, size):
    """Floors of ten; sizes that do not halve evenly."""
    result = judged(phantoms[:20, :size, :size], phantoms[20:40, :size, :size])
    every = {"ssim", f"swd_{size}", "kid", "fid", "recall", "coverage", "checkerboard_2", "similarity"}
    assert every <= set(by_name(result))
    assert all(np.isfinite(figure.value.value) for figure in result.figures)


def test_a_single_fake_is_no_set(phantoms):
    assert judged(phantoms[:1], phantoms[20:24]).figures == ()


def test_medimagegan_pairs_are_those_of_the_files(phantoms):
    """The i-th with the i-th, whatever the other measures choose."""
    result = by_name(judged(phantoms[:30], phantoms[40:], pairing="medimagegan"))
    expected = paired_scores(phantoms[:30], phantoms[40:70], ["ssim"], pairing="medimagegan")["ssim"].mean()
    assert result["ssim"].value.value == pytest.approx(expected, rel=1e-5)
    floor = paired_scores(phantoms[70:], phantoms[40:70], ["ssim"], pairing="medimagegan")["ssim"].mean()
    assert result["ssim"].floor.value == pytest.approx(floor, rel=1e-5)


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


def test_grey_images(small):
    result = judged(small[:30, ..., :1], small[30:, ..., :1])
    assert {"mdsi", "swd_16", "kid", "checkerboard_2", "similarity"} <= set(by_name(result))
