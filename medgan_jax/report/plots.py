"""Plots of a training's logs, as PNG.

Colours are those of Okabe and Ito (2008, "Color Universal Design"), told apart by colour-blind eyes, with a dark red
for their yellow, which is hardly seen on white; line styles and markers serve grey prints. The generator is always
blue, the discriminator vermilion.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medgan_jax.files import replace_file
from medgan_jax.report.record import Lines, Record, measure_names, number, read_record
from medgan_jax.workdir import Workdir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#661100")
_STYLES = (_COLOURS * 4, ("-", "--", "-.", ":") * 8, "os^Dv<>P" * 4)  # colour, line style, marker of 32 curves
_GREY = "#555555"
_WIDTH, _HEIGHT = 5.6, 3.4  # inches; small, so that text stays legible on a narrow screen
_DPI = 160
_FEW_POINTS = 50  # up to so many are marked, as a line between two tells nothing
_MANY_POINTS = 400  # above, a line is drawn faint, and over it medians
_MEDIANS = 120
_MAX_DRAWN = 4000
_NAMED_ALARMS = 8
_MAX_FAMILIES, _MAX_CURVES, _MAX_LAYERS = 6, 8, 32
_SPIKE = 100  # times what most losses are
_LARGEST = 1e30  # larger values are drawn as that, as axes cannot hold them


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      ylabel: of the axis.
      curves: by label, the key in the log's lines. Where the lines hold KEY_reals too, the same figure of real
        images, it becomes a dashed line of the same colour.
      lines: of the log.
      scale: sets the axis, once the curves are drawn.
    """

    ylabel: str
    curves: dict[str, str]
    lines: Lines
    scale: Callable[["Axes"], None] = lambda axes: None


def _both(name: str) -> dict[str, str]:
    return {"generator": f"{name}_gen", "discriminator": f"{name}_dis"}


def _from_0(axes: "Axes") -> None:
    axes.set_ylim(bottom=0)


def _logarithmic(axes: "Axes") -> None:
    axes.set_yscale("log", nonpositive="mask")


def _symlog_if_spiked(axes: "Axes") -> None:
    """A scale that is logarithmic above what most values are, where a few would press the rest into one line."""
    values = np.abs(np.concatenate([line.get_ydata() for line in axes.lines]))
    usual = 10 ** np.ceil(np.log10(max(2 * np.median(values), 1e-3)))
    if values.max() > _SPIKE * usual:
        axes.set_yscale("symlog", linthresh=usual, linscale=2)
        axes.yaxis.get_major_locator().set_params(numticks=7)  # type: ignore[call-arg]  # symlog's has it


def _score(axes: "Axes") -> None:
    axes.axhline(0.5, color="#777777", linewidth=1.2, linestyle=":", label="balance")
    axes.set_ylim(-0.02, 1.02)


def _measures(evaluations: Lines) -> list[Panel]:
    """Those of one family, such as swd, swd_64 and swd_32, share axes."""
    families: dict[str, list[str]] = {}
    for name in measure_names(evaluations):
        families.setdefault(name.split("_")[0], []).append(name)
    return [
        Panel(_plain(family.upper()), {_plain(name): name for name in names[:_MAX_CURVES]}, evaluations)
        for family, names in list(families.items())[:_MAX_FAMILIES]
    ]


def _spectral_norms(health: Lines) -> list[Panel]:
    panels = []
    for network, key in _both("norms").items():
        lists = [(line["step"], line[key][:_MAX_LAYERS]) for line in health if isinstance(line.get(key), list)]
        lines = [{"step": step} | {str(i): norm for i, norm in enumerate(norms, 1)} for step, norms in lists]
        depth = max((len(norms) for _, norms in lists), default=0)
        curves = {f"layer {i}" if i == 1 else f"{i}": str(i) for i in range(1, depth + 1)}
        panels.append(Panel(f"{network}'s\nlargest singular value", curves, lines, _from_0))
    return panels


@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure of a log: its title and, given the log's lines, its panels from top to bottom."""

    log: str  # its name in Record.logs
    title: str
    panels: Callable[[Lines], list[Panel]]


def _single(
    log: str, title: str, ylabel: str, curves: dict[str, str], scale: Callable[["Axes"], None] = lambda axes: None
) -> Plot:
    return Plot(log, title, lambda lines: [Panel(ylabel, curves, lines, scale)])


_DIVERSITY = {"fakes": "diversity", "the same latents, since the check before": "drift"}
_LOGITS = {"training images": "logit_train", "held-out images": "logit_held_out", "fakes": "logit_fakes"}
PLOTS = {  # by the names of the files
    "losses": _single("metrics", "Losses during training", "loss", _both("loss"), _symlog_if_spiked),
    # From 0 to 1 as in MATLAB's example "Train Generative Adversarial Network": the discriminator's is the mean of
    # D(x) and 1 - D(G(z)), the generator's is D(G(z)).
    "scores": _single("metrics", "Scores of the networks", "score", _both("score"), _score),
    "diversity": _single(
        "health", "Diversity of the fakes, and their drift", "mean distance of two images", _DIVERSITY, _from_0
    ),
    "judgements": _single("health", "Logits of the discriminator", "mean logit", _LOGITS),
    "gradient_norms": _single("metrics", "Gradient norms", "norm of the gradient", _both("grad_norm"), _logarithmic),
    "measures": Plot("evaluations", "Distances to held-out reals, lower is better", _measures),
    "spectral_norms": Plot("health", "Spectral norms of the layers, from the input on", _spectral_norms),
}


def plot_figure(name: str, lines: Lines, alarms: Lines = ()) -> "Figure | None":
    """Draws one of PLOTS from the lines of its log; None where there is nothing to draw.

    Each step of `alarms`, lines of alarms.jsonl, becomes a thin vertical line.
    """
    drawn = []
    for panel in PLOTS[name].panels(lines):
        curves = {label: _points(panel.lines, key) for label, key in panel.curves.items()}
        if curves := {label: points for label, points in curves.items() if len(points[0])}:
            drawn.append((panel, curves))
    if not drawn:
        return None
    from matplotlib.figure import Figure  # slow to import, and needed by few commands

    rows = len(drawn)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * (1 if rows == 1 else 0.2 + 0.65 * rows)), layout="constrained")
    all_axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axes, (panel, curves) in zip(all_axes, drawn, strict=True):
        _draw_panel(axes, panel, curves)
    figure.suptitle(PLOTS[name].title, x=0.015, ha="left", fontsize=10.5)
    _finish(all_axes, alarms)
    return figure


def png(figure: "Figure", *, dpi: int = _DPI) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def draw_plots(record: Record) -> dict[str, bytes]:
    """PNG files by the names of PLOTS, as far as there is anything to draw."""
    figures = {name: plot_figure(name, record.logs[plot.log], record.logs["alarms"]) for name, plot in PLOTS.items()}
    return {name: png(figure) for name, figure in figures.items() if figure}


def write_plots(files: Workdir) -> list[Path]:
    """Writes WORKDIR/plots/NAME.png for each of PLOTS that there is anything to draw for; returns the paths.

    Raises:
      UserError: the workdir holds no training.
      OSError: a file cannot be written.
    """
    drawn = draw_plots(read_record(files))
    folder = files.path / "plots"
    folder.mkdir(exist_ok=True)
    for name, data in drawn.items():
        replace_file(folder / f"{name}.png", data)
    return [folder / f"{name}.png" for name in drawn]


def _points(lines: Lines, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, where there is a finite value."""
    pairs = [(line["step"], value) for line in lines if (value := number(line, key)) is not None]
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    return x, y.clip(-_LARGEST, _LARGEST)


def _plain(text: Any) -> str:
    """Text from a file, without what matplotlib takes for a formula or its font lacks."""
    return re.sub(r"[^\w .:%()+-]", "?", str(text)[:40], flags=re.ASCII)


def _draw_panel(axes: "Axes", panel: Panel, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    reals = {label: _points(panel.lines, f"{panel.curves[label]}_reals")[1] for label in curves}
    has_reals = any(map(len, reals.values()))
    for (label, (x, y)), colour, style, marker in zip(curves.items(), *_STYLES, strict=False):
        style = "-" if has_reals else style  # theirs are the dashed lines
        _draw_curve(axes, x, y, color=colour, linestyle=style, marker=marker, label=label)
        if len(reals[label]):  # the same value at each step: the reals are measured once
            axes.axhline(reals[label][-1], color=colour, linestyle="--", linewidth=1, alpha=0.8)
    if has_reals:
        axes.plot([], [], color=_GREY, linestyle="--", linewidth=1, label="reals")
    panel.scale(axes)
    axes.set(ylabel=panel.ylabel)
    axes.legend(  # above the axes, where no curve and no alarm is
        fontsize=7.5, frameon=False, ncols=8, loc="lower right", bbox_to_anchor=(1.01, 1.01), borderaxespad=0,
        handlelength=1.8, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip


def _draw_curve(axes: "Axes", x: np.ndarray, y: np.ndarray, *, marker: str, color: str, **style: Any) -> None:
    """A line; of many points, medians of as many neighbours each, and the points themselves faint beneath."""
    if len(x) <= _MANY_POINTS:
        marker = marker if len(x) <= _FEW_POINTS else ""
        axes.plot(x, y, color=color, marker=marker, markersize=3.5, linewidth=1.4, **style)
        return
    thin = slice(None, None, -(-len(x) // _MAX_DRAWN))
    axes.plot(x[thin], y[thin], color=color, linewidth=0.5, alpha=0.25)
    middle = [[np.median(part) for part in np.array_split(values, _MEDIANS)] for values in (x, y)]
    axes.plot(*middle, color=color, linewidth=1.8, **style)


def _finish(all_axes: Sequence["Axes"], alarms: Lines) -> None:
    """Grid, steps and alarms, which all plots have; the last axes show the steps."""
    from matplotlib.ticker import MaxNLocator

    for axes in all_axes:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    left, right = all_axes[0].get_xlim()
    if right - left < 7:  # of so few steps matplotlib would mark parts
        left, right = all_axes[0].set_xlim((left + right) / 2 - 3.5, (left + right) / 2 + 3.5)
    all_axes[-1].set_xlabel("iteration")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    all_axes[-1].xaxis.set_major_formatter("{x:,.0f}")  # whole steps, where matplotlib writes "0.5" with "+5e3" aside
    named: list[float] = []
    for alarm in alarms:
        step = alarm["step"]
        if not left <= step <= right:
            continue
        for axes in all_axes:
            axes.axvline(step, color=_GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
        if len(named) < _NAMED_ALARMS and all(abs(step - other) > 0.04 * (right - left) for other in named):
            named.append(step)
            all_axes[0].annotate(
                _plain(alarm.get("title")), (step, 0.98), xycoords=("data", "axes fraction"), xytext=(-2, 0),
                textcoords="offset points", rotation=90, ha="right", va="top", fontsize=7, color="#444444",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )  # fmt: skip
