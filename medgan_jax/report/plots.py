"""Plots of a training's logs, as PNG.

Colours are those of Okabe and Ito (2008, "Color Universal Design"), told apart by colour-blind eyes, with a dark red
for their yellow, which is hardly seen on white; line styles and markers serve grey prints. The generator is always
blue, the discriminator vermilion.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medgan_jax.images import replace_file
from medgan_jax.report.record import Record, number, read_record
from medgan_jax.workdir import Workdir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Sequence[dict[str, Any]]

_BLUE, _VERMILION = "#0072B2", "#D55E00"
_COLOURS = (_BLUE, _VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#661100")
_LOOKS = (_COLOURS * 4, ("-", "--", "-.", ":") * 8, "os^Dv<>P" * 4)  # colour, line style, marker of the first 32 lines
_NETWORKS = (("generator", _BLUE, "-", "o"), ("discriminator", _VERMILION, "--", "s"))
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


def losses(metrics: Lines, alarms: Lines = ()) -> bytes | None:
    """Losses of both networks over the steps.

    Args:
      metrics: lines of metrics.jsonl.
      alarms: lines of alarms.jsonl; each step among them becomes a thin vertical line.

    Returns:
      A PNG file; None when there is nothing to draw.
    """
    return _both_networks(
        metrics, alarms, ("loss_gen", "loss_dis"), ylabel="loss", title="Losses during training", finish=_tamed
    )


def scores(metrics: Lines, alarms: Lines = ()) -> bytes | None:
    """Scores of both networks, from 0 to 1, as in MATLAB's example "Train Generative Adversarial Network".

    The discriminator's is the mean of D(x) and 1 - D(G(z)), the generator's is D(G(z)); at 0.5 they are balanced. See
    `losses` for arguments and result. Lines of older versions hold only D(x) and D(G(z)).
    """

    def balance(axes: "Axes") -> None:
        axes.axhline(0.5, color="#777777", linewidth=1.2, linestyle=":", label="balance")
        axes.set_ylim(-0.02, 1.02)

    lines = [with_scores(line) for line in metrics]
    return _both_networks(
        lines, alarms, ("score_gen", "score_dis"), ylabel="score", title="Scores of the networks", finish=balance
    )


def gradient_norms(metrics: Lines, alarms: Lines = ()) -> bytes | None:
    """Norms of the gradients of both networks, on a logarithmic scale; see `losses` for arguments and result."""
    return _both_networks(
        metrics,
        alarms,
        ("grad_norm_gen", "grad_norm_dis"),
        ylabel="norm of the gradient",
        title="Gradient norms",
        finish=lambda axes: axes.set_yscale("log", nonpositive="mask"),
    )


def spectral_norms(health: Lines, alarms: Lines = ()) -> bytes | None:
    """The largest singular value of each layer's kernel, by network.

    Args:
      health: lines of health.jsonl.
      alarms: as for `losses`.

    Returns:
      A PNG file; None when there is nothing to draw.
    """
    networks = []
    for name, _, _, _ in _NETWORKS:
        key = f"norms_{name[:3]}"
        lists = [(line["step"], line[key]) for line in health if isinstance(line.get(key), list)]
        depth = min(_MAX_LAYERS, max((len(norms) for _, norms in lists), default=0))
        layers = [
            [{"step": step, "norm": norms[layer]} for step, norms in lists if layer < len(norms)]
            for layer in range(depth)
        ]
        series = [
            (f"layer {layer + 1}" if layer == 0 else f"{layer + 1}", *_points(lines, "norm"))
            for layer, lines in enumerate(layers)
        ]
        networks += [(name, [each for each in series if len(each[1])])] if any(len(s[1]) for s in series) else []
    if not networks:
        return None
    figure, all_axes = _figure(len(networks), _HEIGHT * (0.2 + 0.65 * len(networks)))
    for axes, (name, series) in zip(all_axes, networks, strict=True):
        for (layer, x, y), colour, style, marker in zip(series, *_LOOKS, strict=False):
            _curve(axes, x, y, color=colour, linestyle=style, marker=marker, label=layer)
        axes.set(ylabel=f"{name}'s\nlargest singular value")
        axes.set_ylim(bottom=0)
        _legend(axes)
    _title(figure, "Spectral norms of the layers, from the input on")
    _finish(all_axes, alarms)
    return png(figure)


def diversity(health: Lines, alarms: Lines = ()) -> bytes | None:
    """How different the fakes are from each other and from those before; arguments and result as for `spectral_norms`.

    Reals are beside them, in a dashed line.
    """
    curves = {"fakes": "diversity", "the same latents, since the look before": "drift"}
    return _of_looks(
        health, alarms, curves, ylabel="mean distance of two images", title="Diversity of the fakes, and their drift",
        floor="diversity_reals",
    )  # fmt: skip


def judgements(health: Lines, alarms: Lines = ()) -> bytes | None:
    """What the discriminator thinks of images it has seen and not seen, and of fakes; as for `spectral_norms`."""
    curves = {"training images": "logit_train", "held-out images": "logit_held_out", "fakes": "logit_fakes"}
    return _of_looks(health, alarms, curves, ylabel="mean logit", title="Judgement of the discriminator")


def measures(evaluations: Lines, alarms: Lines = ()) -> bytes | None:
    """Each measure of the evaluations with its floor, the same measure of reals, dashed in the same colour.

    Args:
      evaluations: lines of evaluations.jsonl.
      alarms: as for `losses`.

    Returns:
      A PNG file; None when there is nothing to draw.
    """
    grouped: dict[str, list[str]] = {}  # those of one unit share axes
    for name in measure_names(evaluations):
        grouped.setdefault(name.split("_")[0], []).append(name)
    families = {family: names[:_MAX_CURVES] for family, names in list(grouped.items())[:_MAX_FAMILIES]}
    if not families:
        return None
    figure, all_axes = _figure(len(families), _HEIGHT * (0.2 + 0.65 * len(families)))
    for axes, (family, names) in zip(all_axes, families.items(), strict=True):
        for name, colour, _, marker in zip(names, *_LOOKS, strict=False):
            x, y = _points(evaluations, name)
            axes.plot(x, y, color=colour, linestyle="-", marker=marker, markersize=4, linewidth=1.4, label=_plain(name))
            x, floor = _points(evaluations, f"{name}_floor")
            look = {"color": colour, "linestyle": "--", "linewidth": 1, "alpha": 0.8}
            if len(x) == 1:
                axes.axhline(floor[0], **look)
            else:
                axes.plot(x, floor, **look)
        axes.plot([], [], color="#555555", linestyle="--", linewidth=1, label="floor: reals")
        axes.set(ylabel=_plain(family.upper()))
        _legend(axes)
    _title(figure, "Distances to held-out reals, lower is better")
    _finish(all_axes, alarms)
    return png(figure)


PLOTS: dict[str, tuple[str, Callable[[Lines, Lines], bytes | None]]] = {  # the log's name in Record, and what draws it
    "losses": ("metrics", losses),
    "scores": ("metrics", scores),
    "diversity": ("health", diversity),
    "judgements": ("health", judgements),
    "gradient_norms": ("metrics", gradient_norms),
    "measures": ("evaluations", measures),
    "spectral_norms": ("health", spectral_norms),
}


def draw_plots(record: Record) -> dict[str, bytes]:
    """PNG files by the names of PLOTS, as far as there is anything to draw."""
    drawn = {name: draw(record.logs[log], record.logs["alarms"]) for name, (log, draw) in PLOTS.items()}
    return {name: data for name, data in drawn.items() if data is not None}


def write_plots(files: Workdir) -> list[Path]:
    """Writes WORKDIR/plots/NAME.png for each name in PLOTS that there is anything to draw for, each whole.

    Returns:
      The files written.

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


def with_scores(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with `score_dis` and `score_gen`, which older versions did not write."""
    real, fake = number(line, "score_real"), number(line, "score_fake_before")
    if real is None or fake is None:
        return line
    return {"score_dis": (real + 1 - fake) / 2, "score_gen": fake} | line


def measure_names(evaluations: Lines) -> list[str]:
    """The measures in lines of evaluations.jsonl, in their order."""
    names = dict.fromkeys(name for line in evaluations for name in line if number(line, name) is not None)
    return [name for name in names if name != "step" and not name.endswith("_floor")]


def png(figure: "Figure", *, dpi: int = _DPI) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def _of_looks(
    health: Lines, alarms: Lines, curves: dict[str, str], *, ylabel: str, title: str, floor: str = ""
) -> bytes | None:
    series = [(label, *_points(health, key)) for label, key in curves.items()]
    series = [each for each in series if len(each[1])]
    if not series:
        return None
    figure, (axes,) = _figure()
    for (label, x, y), colour, style, marker in zip(series, *_LOOKS, strict=False):
        _curve(axes, x, y, color=colour, linestyle=style, marker=marker, label=label)
    x, y = _points(health, floor)
    if len(x):
        axes.plot(x, y, color="#555555", linestyle="--", linewidth=1, label="reals")
        axes.set_ylim(bottom=0)
    axes.set(ylabel=ylabel)
    _title(figure, title)
    _legend(axes)
    _finish([axes], alarms)
    return png(figure)


def _both_networks(
    lines: Lines,
    alarms: Lines,
    keys: tuple[str, str],
    *,
    ylabel: str,
    title: str,
    finish: Callable[["Axes"], Any] = lambda axes: None,
) -> bytes | None:
    series = [_points(lines, key) for key in keys]
    if not any(len(x) for x, _ in series):
        return None
    figure, (axes,) = _figure()
    for (x, y), (name, colour, style, marker) in zip(series, _NETWORKS, strict=True):
        _curve(axes, x, y, color=colour, linestyle=style, marker=marker, label=name)
    finish(axes)
    axes.set(ylabel=ylabel)
    _title(figure, title)
    _legend(axes)
    _finish([axes], alarms)
    return png(figure)


def _figure(rows: int = 1, height: float = _HEIGHT) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure  # slow to import, and wanted by few calls

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _title(figure: "Figure", text: str) -> None:
    figure.suptitle(text, x=0.015, ha="left", fontsize=10.5)


def _legend(axes: "Axes") -> None:
    """Above the axes, where no curve and no alarm is."""
    axes.legend(
        fontsize=7.5, frameon=False, ncols=8, loc="lower right", bbox_to_anchor=(1.01, 1.01), borderaxespad=0,
        handlelength=1.8, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip


def _points(lines: Lines, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, where there is a finite value."""
    pairs = [(line["step"], value) for line in lines if (value := number(line, key)) is not None]
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    return x, y.clip(-_LARGEST, _LARGEST)


def _plain(text: Any) -> str:
    """A name from a file: no formula of matplotlib's, and in letters that its font has."""
    return str(text)[:40].encode("latin-1", "replace").decode("latin-1").replace("\\", "/").replace("$", r"\$") or "?"


def _curve(
    axes: "Axes", x: np.ndarray, y: np.ndarray, *, color: str, label: str, linestyle: str = "-", marker: str = ""
) -> None:
    """A line; of many points, medians of as many neighbours each, and the points themselves faint beneath."""
    if len(x) <= _MANY_POINTS:
        marker = marker if len(x) <= _FEW_POINTS else ""
        axes.plot(x, y, color=color, linestyle=linestyle, marker=marker, markersize=3.5, linewidth=1.4, label=label)
        return
    thin = slice(None, None, -(-len(x) // _MAX_DRAWN))
    axes.plot(x[thin], y[thin], color=color, linewidth=0.5, alpha=0.25)
    bins = [np.array_split(values, _MEDIANS) for values in (x, y)]
    middle = [[np.median(part) for part in parts] for parts in bins]
    axes.plot(*middle, color=color, linestyle=linestyle, linewidth=1.8, label=label)


def _tamed(axes: "Axes") -> None:
    """A scale that is logarithmic above what most values are, where a few would press the rest into one line."""
    values = np.abs(np.concatenate([line.get_ydata() for line in axes.lines]))
    usual = 10 ** np.ceil(np.log10(max(2 * np.median(values), 1e-3)))
    if values.max() > _SPIKE * usual:
        axes.set_yscale("symlog", linthresh=usual, linscale=2)
        axes.yaxis.get_major_locator().set_params(numticks=7)


def _finish(all_axes: Sequence["Axes"], alarms: Lines) -> None:
    """What all plots share; the last axes bear the steps."""
    from matplotlib.ticker import MaxNLocator

    for axes in all_axes:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
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
            axes.axvline(step, color="#555555", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
        if len(named) < _NAMED_ALARMS and all(abs(step - other) > 0.04 * (right - left) for other in named):
            named.append(step)
            all_axes[0].annotate(
                _plain(alarm.get("title") or alarm.get("alarm") or "alarm"),
                (step, 0.98),
                xycoords=("data", "axes fraction"),
                xytext=(-2, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=7,
                color="#444444",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )
