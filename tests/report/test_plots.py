"""What the plots draw, told from matplotlib's own objects."""

import io
import itertools
import math
import time

import numpy as np
import pytest
from PIL import Image

from medgan_jax.report import plots
from medgan_jax.workdir import read_lines


@pytest.fixture
def drawn(monkeypatch):
    """The figures of the plots made in a test."""
    figures, png = [], plots.png
    monkeypatch.setattr(plots, "png", lambda figure: figures.append(figure) or png(figure))
    return figures


# What eyes without one kind of cone see of linear RGB: Machado, Oliveira and Fernandes 2009, table 1, severity 1.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB


def seen(colour, blindness):
    """CIELAB."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(XYZ @ linear / [0.9505, 1, 1.089], 1e-3))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def curves(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_scores_lie_between_0_and_1_with_the_line_of_balance_and_the_alarm(make, drawn):
    files = make()
    alarms = list(read_lines(files.alarms))
    data = plots.scores(list(read_lines(files.metrics)), alarms)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(2**24)) > 10
    (axes,) = drawn[0].axes
    lines = curves(axes)
    assert set(lines["generator"].get_ydata()) == {0.2}
    assert set(lines["discriminator"].get_ydata()) == {0.75}
    assert list(lines["discriminator"].get_xdata()) == list(range(50, 450, 50))
    assert set(lines["balance"].get_ydata()) == {0.5}
    assert axes.get_ylim() == pytest.approx((-0.02, 1.02))
    assert axes.get_xlabel() == "iteration"
    assert axes.get_ylabel() == "score"
    assert [text.get_text() for text in axes.texts] == ["Mode collapse"]
    assert [200, 200] in [list(line.get_xdata()) for line in axes.lines]
    looks = [(line.get_color(), line.get_linestyle()) for line in lines.values()]
    assert len({colour for colour, _ in looks}) == len({style for _, style in looks}) == 3


def test_scores_of_older_versions_are_derived(drawn):
    plots.scores([{"step": 1, "score_real": 0.9, "score_fake_before": 0.4}, {"step": 2, "score_real": 0.5}])
    lines = curves(drawn[0].axes[0])
    assert list(lines["discriminator"].get_ydata()) == [pytest.approx(0.75)]
    assert list(lines["generator"].get_ydata()) == [0.4]


def test_measures_stand_beside_their_floors(make, drawn):
    plots.measures(list(read_lines(make().evaluations)))
    swd, kid = drawn[0].axes
    for axes, name, value, floor in ((swd, "swd", 50.0, 40.5), (kid, "kid", 0.25, 0.125)):
        line = curves(axes)[name]
        assert line.get_ydata()[-1] == value
        (dashed,) = [other for other in axes.lines if len(other.get_ydata()) and set(other.get_ydata()) == {floor}]
        assert dashed.get_linestyle() == "--"
        assert dashed.get_color() == line.get_color()


def test_norms_are_drawn_by_layer_and_gradients_on_a_logarithmic_scale(make, drawn):
    files = make()
    plots.spectral_norms(list(read_lines(files.health)))
    plots.gradient_norms(list(read_lines(files.metrics)))
    generator, discriminator = drawn[0].axes
    assert [line.get_ydata()[0] for line in curves(generator).values()] == [1.5, 2.5]
    assert len(curves(discriminator)) == 3
    assert drawn[1].axes[0].get_yscale() == "log"
    assert set(curves(drawn[1].axes[0])["generator"].get_ydata()) == {3.0}


def test_many_lines_become_medians_and_stay_fast(drawn):
    random = np.random.default_rng(0)
    values = 2 + random.standard_cauchy(100_000)  # a mean of these would mean nothing
    start = time.perf_counter()
    plots.losses([{"step": i + 1, "loss_gen": value, "loss_dis": 1.0} for i, value in enumerate(values.tolist())])
    assert time.perf_counter() - start < 5
    line = curves(drawn[0].axes[0])["generator"]
    assert len(line.get_ydata()) < 200
    np.testing.assert_allclose(line.get_ydata(), 2, atol=0.3)


@pytest.mark.parametrize("steps", [[5000], list(range(10_000, 1_000_001, 10_000))])
def test_iterations_are_whole_and_written_out(drawn, steps):
    lines = [{"step": step, "loss_gen": 1.0, "loss_dis": 2.0, "swd": 3.0, "swd_floor": 1.0} for step in steps]
    plots.losses(lines)
    plots.measures(lines)
    for figure in drawn:
        axis = figure.axes[-1].xaxis
        left, right = axis.get_view_interval()
        ticks = zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
        seen = [(label.get_text(), at) for label, at in ticks if left <= at <= right]
        assert len(seen) > 2
        assert all(label == f"{at:,.0f}" and at % 1 == 0 for label, at in seen)
        assert axis.get_offset_text().get_text() == ""


def test_a_few_huge_losses_leave_the_rest_to_be_seen(drawn):
    lines = [{"step": step, "loss_gen": 3.0 - step / 200, "loss_dis": 1.0} for step in range(1, 101)]
    plots.losses(lines)
    plots.losses([*lines, {"step": 101, "loss_gen": 1e12, "loss_dis": -1e9}])
    usual, spiked = (figure.axes[0] for figure in drawn)
    assert usual.get_yscale() == "linear"
    heights = spiked.transAxes.inverted().transform(spiked.transData.transform([(0, 0), (0, 3), (0, 1e12)]))[:, 1]
    assert heights[1] - heights[0] > 0.02
    assert heights[2] < 1


def test_colours_are_told_apart(drawn):
    plots.measures([{"step": step, **{f"swd_{i}": i for i in range(8)}} for step in (1, 2)])
    lines = list(curves(drawn[0].axes[0]).values())[:8]
    for blindness in BLINDNESS:
        for first, second in itertools.combinations([seen(line.get_color(), blindness) for line in lines], 2):
            assert np.linalg.norm(first - second) > 12, blindness  # where 2 is just seen side by side
    assert len({line.get_marker() for line in lines}) == 8


def test_what_matplotlib_cannot_draw_is_drawn_somehow(drawn):
    lines = [{"step": step, "loss_gen": 1e308 * step, "loss_dis": -1e308, "$x^{_": 1} for step in (1, 10)]
    alarms = [{"step": 1, "title": "$\\frac \u65e5"}]
    assert plots.losses(lines, alarms)
    assert plots.measures(lines, alarms)
    assert [text.get_text() for text in drawn[0].axes[0].texts] == [r"\$/frac ?"]


def test_nothing_to_draw_is_none():
    for _, draw in plots.PLOTS.values():
        assert draw([], []) is None
        assert (
            draw(
                [
                    {
                        "step": 3,
                        "loss_gen": None,
                        "swd": "high",
                        "norms_gen": ["a"],
                        "diversity": 10**400,
                        "loss_dis": math.nan,
                    }
                ],
                [],
            )
            is None
        )


def test_plots_are_written_as_files_with_all_axes_labelled(make, drawn):
    files = make()
    (files.path / "plots").mkdir()
    paths = plots.write_plots(files)
    assert [path.stem for path in paths] == list(plots.PLOTS)
    assert sorted(path.name for path in (files.path / "plots").iterdir()) == sorted(path.name for path in paths)
    labels = [[axes.get_ylabel().replace("\n", " ") for axes in figure.axes] for figure in drawn]
    assert labels == [
        ["loss"], ["score"], ["mean distance of two images"], ["mean logit"], ["norm of the gradient"], ["SWD", "KID"],
        ["generator's largest singular value", "discriminator's largest singular value"],
    ]  # fmt: skip
    assert all(figure.axes[-1].get_xlabel() == "iteration" for figure in drawn)
    lines = curves(drawn[2].axes[0])
    assert set(lines["fakes"].get_ydata()) == {0.2}
    assert set(lines["reals"].get_ydata()) == {0.3}
    assert set(lines["the same latents, since the look before"].get_ydata()) == {0.1}
    heights = {label: set(line.get_ydata()) for label, line in curves(drawn[3].axes[0]).items()}
    assert heights == {"training images": {2.5}, "held-out images": {1.5}, "fakes": {-2.0}}
