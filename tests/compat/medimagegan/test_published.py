"""The published scores, the same of nearest pairs, and their real reference."""

import numpy as np
import pytest

from medgan_jax.compat.medimagegan.published import PUBLISHED, num_fakes, published_report, published_scores
from medgan_jax.evaluation.protocol import paired_scores

pytestmark = pytest.mark.slow


def means(images, reals, pairing):
    scores = paired_scores(images, reals, list(PUBLISHED), pairing=pairing)
    return {name: pytest.approx(values.mean(), rel=1e-5) for name, values in scores.items()}


@pytest.fixture(scope="module")
def scores(phantoms):
    """Of 20 fakes and 41 reals."""
    return published_scores(phantoms[:20], phantoms[20:61], seed=5)


def test_columns_are_means_over_the_pairs_they_name(phantoms, scores):
    fakes, reals = phantoms[:20], phantoms[20:61]
    order = np.random.default_rng(5).permutation(41)
    reference, others = reals[order[:21]], reals[np.sort(order[21:])]
    assert tuple(scores.means["fakes_original"]) == PUBLISHED == ("psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi")
    assert scores.means["fakes_original"] == means(fakes, reals[order[:20]], "medimagegan")
    assert scores.means["reals_original"] == means(reals[order[21:]], reference, "medimagegan")
    assert scores.means["fakes_nearest"] == means(fakes, reference, "nearest")
    assert scores.means["reals_nearest"] == means(others, reference, "nearest")
    assert (scores.num_pairs, scores.num_each, scores.num_reference, scores.skipped) == (20, 20, 21, ())


def test_copies_of_reals_beat_the_real_reference(phantoms):
    """The original's protocol does not see them."""
    reals = phantoms[:40, ::2, ::2]
    means = published_scores(reals, reals, seed=0).means
    assert means["fakes_nearest"]["ssim"] > means["reals_nearest"]["ssim"] + 0.1
    assert means["fakes_original"]["ssim"] < means["reals_nearest"]["ssim"]


def test_as_many_fakes_as_can_be_used():
    assert [num_fakes(number) for number in (4, 400, 5000)] == [64, 200, 500]


@pytest.mark.parametrize(("fakes", "reals", "pairs"), [(5, 3, 3), (5, 0, 0), (0, 9, 0)])
def test_too_few_images_are_skipped_with_the_reason(phantoms, fakes, reals, pairs):
    scores = published_scores(phantoms[:fakes, ::2, ::2], phantoms[10 : 10 + reals, ::2, ::2], seed=0)
    assert scores.num_pairs == pairs
    assert [column for column, means in scores.means.items() if means] == ["fakes_original"] * bool(pairs)
    assert any(f"nearest pairs: {fakes} fakes and {reals} reals are too few" in text for text in scores.skipped)
    assert any("there are no pairs" in text for text in scores.skipped) == (not pairs)


def test_small_images_lack_a_metric(phantoms):
    scores = published_scores(phantoms[:4, ::2, ::2], phantoms[10:14, ::2, ::2], seed=0)
    report = published_report(scores, title="Small").splitlines()
    (row,) = [line for line in report if line.startswith("MS-GMSD")]
    assert row.split()[-4:] == ["-", "-", "-", "-"]
    assert "Skipped: MS-GMSD: needs images of 17 px, and these have 16." in report


def test_a_report_says_what_was_compared(scores):
    report = published_report(scores, title="The generator of step 9")
    assert report.startswith("The generator of step 9\n")
    rows = {line.split()[0].rstrip(","): line.split()[-4:] for line in report.splitlines()[3:8]}
    assert list(rows) == ["PSNR", "SSIM", "MS-GMSD", "MDSI", "HaarPSI"]
    assert rows["SSIM"] == [f"{column['ssim']:.2f}" for column in scores.means.values()]
    for text in ("20 pairs", "unrelated", "seed 5", "Reals: 20 others", "20 fakes", "of 21."):
        assert text in report
    assert "Skipped" not in report
