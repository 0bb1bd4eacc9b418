"""The result of a trial: a page with its plots and pictures, and a table for the terminal."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgan_jax.files import replace_file
from medgan_jax.html import environment, inline, inline_grid
from medgan_jax.proving.figures import BINS, KINDS, PRIMARY, Fold, Verdict, signed

PAGE = "prove.html"
_COLOURS = {"without": "#0072B2", "with": "#D55E00", "other": "#555555"}  # Okabe and Ito's


def table(verdict: Verdict) -> str:
    """One line an arm: its figures, and its primary one's difference to the best arm without fakes."""
    kinds = list(KINDS.values())
    header = ["arm", *(kind.title for kind in kinds), f"{kinds[0].title} less that of {verdict.reference}"]
    rows = [header]
    for result in verdict.results:
        spoken = "" if result.arm.name == verdict.reference else signed(result.differences[PRIMARY])
        rows.append([result.arm.name, *(f"{result.figures[name].value:.3f}" for name in KINDS), spoken])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", verdict.sentence])


def write(
    out: Path,
    verdict: Verdict,
    folds: Sequence[Fold],
    details: Mapping[str, Any],
    attention: Mapping[str, np.ndarray],
    *,
    positive: int,
) -> None:
    """Writes prove.html, which needs no other file.

    Args:
      out: the folder of the trial.
      verdict: of it.
      folds: what the verdict is of.
      details: of the trial, by name, for people.
      attention: "images", uint8 (N, H, W, C), reals and then as many fakes; and by arm, maps (N, h, w) of them.
      positive: the class whose curves are drawn.
    """
    reference = verdict.reference
    best = max((r for r in verdict.results if r.arm.has_fakes), key=lambda r: r.figures[PRIMARY].value).arm.name
    images = attention["images"]
    html = (
        environment(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            verdict=verdict,
            kinds=KINDS,
            primary=PRIMARY,
            details=details,
            plain=_plain,
            signed=signed,
            best=best,
            forest=_forest(verdict),
            roc=_roc(folds, {"without": reference, "with": best}, positive),
            calibration=_calibration(folds, {"without": reference, "with": best}, positive),
            fakes=inline_grid(images[len(images) // 2 :], len(images) // 2),
            attention={
                name: inline_grid(np.concatenate([images, _heat(maps, images)]), len(images))
                for name, maps in attention.items()
                if name != "images"
            },
        )
    )
    replace_file(out / PAGE, html.encode(errors="replace"))


def _heat(maps: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Images darkened but where a map, enlarged, is high: uint8 (N, H, W, C)."""
    from PIL import Image

    size = images.shape[1]
    shades = []
    for values in maps:
        low, high = values.min(), values.max()
        scaled = (values - low) / max(high - low, 1e-6)
        shades.append(
            np.asarray(Image.fromarray(scaled.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
        )
    return (images * np.clip(0.15 + 0.85 * np.stack(shades), 0, 1)[..., None]).astype(np.uint8)


def _plain(value: Any) -> str:
    """A detail of the trial, for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return ", ".join(f"{x:g}" for x in value) if isinstance(value, tuple) else str(value)


def _forest(verdict: Verdict) -> str:
    from matplotlib.figure import Figure

    results = [result for result in verdict.results if result.arm.name != verdict.reference][::-1]
    figure = Figure(figsize=(7.5, 0.3 * len(results) + 1), layout="constrained")
    axes = figure.add_subplot()
    for place, result in enumerate(results):
        estimate = result.differences[PRIMARY]
        colour = _COLOURS["with" if result.arm.has_fakes else "without" if not result.arm.fakes else "other"]
        axes.plot([estimate.low, estimate.high], [place, place], color=colour)
        axes.plot(estimate.value, place, "s" if result.arm.has_fakes else "o", color=colour)
    axes.axvline(0, color="#777777", linestyle=":")
    axes.set_yticks(range(len(results)), [result.arm.describe() for result in results])
    axes.set_xlabel(f"{KINDS[PRIMARY].title} less that of {verdict.reference}")
    return _svg(figure)


def _roc(folds: Sequence[Fold], arms: Mapping[str, str], positive: int) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    grid = np.linspace(0, 1, 101)
    for kind, name in arms.items():
        curves = []
        for fold in folds:
            for scores in fold.scores[name]:
                order = np.argsort(-scores[:, positive], kind="stable")
                hits = (fold.labels == positive)[order]
                rise = np.concatenate([[0], np.cumsum(hits) / hits.sum()])
                false = np.concatenate([[0], np.cumsum(~hits) / (~hits).sum()])
                curves.append(np.interp(grid, false, rise))
        axes.plot(grid, np.mean(curves, 0), color=_COLOURS[kind], label=name, linestyle="-" if kind == "with" else "--")
    axes.plot([0, 1], [0, 1], color="#777777", linestyle=":")
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.legend(fontsize="small")
    return _svg(figure)


def _calibration(folds: Sequence[Fold], arms: Mapping[str, str], positive: int) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for kind, name in arms.items():
        scores = np.concatenate([fold.scores[name][:, :, positive].ravel() for fold in folds])
        truth = np.concatenate([np.tile(fold.labels == positive, len(fold.scores[name])) for fold in folds])
        bins = np.array_split(np.argsort(scores, kind="stable"), BINS)
        x, y = ([values[places].mean() for places in bins] for values in (scores, truth))
        axes.plot(x, y, color=_COLOURS[kind], marker="s" if kind == "with" else "o", label=name)
    axes.plot([0, 1], [0, 1], color="#777777", linestyle=":")
    axes.set_xlabel("probability that classifiers give")
    axes.set_ylabel("frequency")
    axes.legend(fontsize="small")
    return _svg(figure)


def _svg(figure: Any) -> str:
    """As the address of an inline picture; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "medgan", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), "image/svg+xml")
