"""The published figures, the same of nearest pairs, and their floor."""

import numpy as np
import pytest

from medgan_jax.compat.medimagegan import published
from medgan_jax.compat.medimagegan.published import PUBLISHED, num_fakes, published_report, published_scores
from medgan_jax.evaluation.protocol import paired_scores


def means(images, reals, pairing, names=PUBLISHED):
    scores = paired_scores(images, reals, list(names), pairing=pairing)
    return {name: pytest.approx(values.mean(), rel=1e-5) for name, values in scores.items()}


@pytest.fixture(scope="module")
def scores(phantoms):
    """Of 20 fakes and 41 reals."""
    return published_scores(phantoms[:20], phantoms[20:61], seed=5)


def test_columns_are_means_over_the_pairs_they_name(phantoms, scores):
    fakes, reals = phantoms[:20], phantoms[20:61]
    order = np.random.default_rng(5).permutation(41)
    reference, others = reals[order[:21]], reals[np.sort(order[21:])]
    assert tuple(scores.as_published) == PUBLISHED == ("psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi")
    assert scores.as_published == means(fakes, reals[order[:20]], "medimagegan")
    assert scores.nearest == means(fakes, reference, "nearest")
    assert scores.nearest_floor == means(others[:20], reference, "nearest")
    assert scores.as_published_floor == means(reals[order[21:]], reference, "medimagegan")
    assert (scores.num_as_published, scores.num_each, scores.num_reference, scores.skipped) == (20, 20, 21, ())


def test_another_seed_is_another_order(phantoms, scores):
    other = published_scores(phantoms[:20], phantoms[20:61], seed=6)
    assert other.as_published != scores.as_published
    assert other.nearest_floor != scores.nearest_floor


def test_copies_of_all_reals_beat_their_floor(phantoms):
    """Half of them are in the reference, and are found there."""
    reals = phantoms[:40, ::2, ::2]
    scores = published_scores(reals, reals, seed=0)
    reference = np.random.default_rng(0).permutation(40)[:20]
    found = np.isin(np.arange(20), reference)
    rest = means(reals[:20][~found], reals[reference], "nearest", ["ssim"])["ssim"].expected
    assert scores.nearest["ssim"] == pytest.approx(found.mean() + (~found).mean() * rest, rel=1e-5)
    assert scores.nearest["ssim"] > scores.nearest_floor["ssim"] + 0.1
    assert scores.as_published["ssim"] < scores.nearest_floor["ssim"]


def test_no_set_is_larger_than_can_be_used(phantoms, monkeypatch):
    monkeypatch.setattr(published, "MAX_AS_PUBLISHED", 6)
    monkeypatch.setattr(published, "MAX_IMAGES", 8)
    assert num_fakes(41) == 8
    scores = published_scores(phantoms[:20, ::2, ::2], phantoms[20:61, ::2, ::2], seed=0)
    assert (scores.num_as_published, scores.num_each, scores.num_reference) == (6, 8, 8)
    assert num_fakes(4) == 6


@pytest.mark.parametrize(("fakes", "reals", "left"), [(5, 3, 3), (5, 1, 1), (5, 0, 0), (0, 9, 0)])
def test_too_few_images_are_skipped_with_a_word(phantoms, fakes, reals, left):
    scores = published_scores(phantoms[:fakes, ::2, ::2], phantoms[10 : 10 + reals, ::2, ::2], seed=0)
    assert scores.num_as_published == left
    assert bool(scores.as_published) == bool(left)
    assert scores.nearest == scores.nearest_floor == scores.as_published_floor == {}
    assert any(f"nearest pairs: {fakes} fakes and {reals} reals are too few" in text for text in scores.skipped)
    assert any("there are no pairs" in text for text in scores.skipped) == (not left)


def test_small_images_lack_a_metric(phantoms):
    scores = published_scores(phantoms[:4, ::2, ::2], phantoms[10:14, ::2, ::2], seed=0)
    assert set(scores.nearest) == set(scores.nearest_floor) == set(PUBLISHED) - {"ms_gmsd"}
    assert scores.skipped == ("MS-GMSD: needs images of 17 px, and these have 16",)
    report = published_report(scores, title="Small").splitlines()
    (row,) = [line for line in report if line.startswith("MS-GMSD")]
    assert row.split()[-4:] == ["-", "-", "-", "-"]
    assert "Skipped: MS-GMSD: needs images of 17 px, and these have 16." in report


def test_a_report_says_what_was_compared(scores):
    report = published_report(scores, title="The generator of step 9")
    assert report.startswith("The generator of step 9\n")
    rows = {line.split()[0].rstrip(","): line.split()[-4:] for line in report.splitlines()[3:8]}
    assert list(rows) == ["PSNR", "SSIM", "MS-GMSD", "MDSI", "HaarPSI"]
    columns = scores.as_published, scores.as_published_floor, scores.nearest, scores.nearest_floor
    assert rows["SSIM"] == [f"{column['ssim']:.2f}" for column in columns]
    for text in ("20 pairs", "unrelated", "seed 5", "Reals: 20 others", "20 fakes", "of 21."):
        assert text in report
    assert "Skipped" not in report
