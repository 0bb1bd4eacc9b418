"""What the plots draw, told from matplotlib's own objects."""

import math

import numpy as np
import pytest

from medgan_jax.report.plots import PLOTS, plot_figure, png
from medgan_jax.workdir import read_lines


def curves(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def heights(axes):
    return {label: set(line.get_ydata()) for label, line in curves(axes).items()}


@pytest.fixture
def figure(make):
    """The figure of a plot of the workdir that `make` writes."""
    files = make()

    def draw(name):
        return plot_figure(name, list(read_lines(getattr(files, PLOTS[name].log))), list(read_lines(files.alarms)))

    return draw


def test_scores_lie_between_0_and_1_with_the_line_of_balance_and_the_alarm(figure):
    (axes,) = figure("scores").axes
    lines = curves(axes)
    assert heights(axes) == {"generator": {0.2}, "discriminator": {0.75}, "balance": {0.5}}
    assert list(lines["discriminator"].get_xdata()) == list(range(50, 450, 50))
    assert axes.get_ylim() == pytest.approx((-0.02, 1.02))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration", "score")
    assert [text.get_text() for text in axes.texts] == ["Mode collapse"]
    assert [200, 200] in [list(line.get_xdata()) for line in axes.lines]
    assert len({line.get_color() for line in lines.values()}) == len({x.get_linestyle() for x in lines.values()}) == 3


def test_measures_stand_beside_those_of_the_reals(figure):
    swd, kid = figure("measures").axes
    for axes, name, value, reals in ((swd, "swd", 50.0, 40.5), (kid, "kid", 0.25, 0.125)):
        line = curves(axes)[name]
        assert line.get_ydata()[-1] == value
        (dashed,) = [other for other in axes.lines if len(other.get_ydata()) and set(other.get_ydata()) == {reals}]
        assert (line.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
        assert dashed.get_color() == line.get_color()
        assert "reals" in curves(axes)


def test_health_checks_and_gradients_are_drawn(figure):
    (axes,) = figure("diversity").axes
    assert heights(axes) == {"fakes": {0.2}, "the same latents, since the check before": {0.1}, "reals": set()}
    assert {0.3} in [set(line.get_ydata()) for line in axes.lines]
    (axes,) = figure("judgements").axes
    assert heights(axes) == {"training images": {2.5}, "held-out images": {1.5}, "fakes": {-2.0}}
    generator, discriminator = figure("spectral_norms").axes
    assert heights(generator) == {"layer 1": {1.5}, "2": {2.5}}
    assert len(curves(discriminator)) == 3
    (axes,) = figure("gradient_norms").axes
    assert axes.get_yscale() == "log"
    assert heights(axes) == {"generator": {3.0}, "discriminator": {0.5}}


def test_many_lines_become_medians():
    values = 2 + np.random.default_rng(0).standard_cauchy(20_000)  # a mean of these would mean nothing
    lines = [{"step": i + 1, "loss_gen": value, "loss_dis": 1.0} for i, value in enumerate(values.tolist())]
    line = curves(plot_figure("losses", lines).axes[0])["generator"]
    assert len(line.get_ydata()) < 200
    np.testing.assert_allclose(line.get_ydata(), 2, atol=0.6)


@pytest.mark.parametrize("steps", [[5000], list(range(10_000, 1_000_001, 10_000))])
def test_iterations_are_whole_and_written_out(steps):
    figure = plot_figure("losses", [{"step": step, "loss_gen": 1.0, "loss_dis": 2.0} for step in steps])
    figure.canvas.draw()
    axis = figure.axes[-1].xaxis
    left, right = axis.get_view_interval()
    ticks = zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
    seen = [(label.get_text(), at) for label, at in ticks if left <= at <= right]
    assert len(seen) > 2
    assert all(label == f"{at:,.0f}" and at % 1 == 0 for label, at in seen)
    assert axis.get_offset_text().get_text() == ""


def test_a_few_huge_losses_leave_the_rest_to_be_seen():
    lines = [{"step": step, "loss_gen": 3.0 - step / 200, "loss_dis": 1.0} for step in range(1, 101)]
    assert plot_figure("losses", lines).axes[0].get_yscale() == "linear"
    spiked = plot_figure("losses", [*lines, {"step": 101, "loss_gen": 1e12, "loss_dis": -1e9}]).axes[0]
    at = spiked.transAxes.inverted().transform(spiked.transData.transform([(0, 0), (0, 3), (0, 1e12)]))[:, 1]
    assert at[1] - at[0] > 0.02
    assert at[2] < 1


def test_what_matplotlib_cannot_draw_is_drawn_somehow():
    lines = [{"step": step, "loss_gen": 1e308 * step, "loss_dis": -1e308, "$x^{_": 1} for step in (1, 10)]
    figure = plot_figure("losses", lines, [{"step": 1, "title": "$\\frac \u65e5"}])
    assert [text.get_text() for text in figure.axes[0].texts] == ["??frac ?"]
    for each in (figure, plot_figure("measures", lines)):
        assert png(each, dpi=40)


def test_nothing_to_draw_is_none():
    odd = {"step": 3, "loss_gen": None, "swd": "high", "norms_gen": ["a"], "diversity": 10**400, "loss_dis": math.nan}
    for name in PLOTS:
        assert plot_figure(name, []) is plot_figure(name, [odd]) is None
