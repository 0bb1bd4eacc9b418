"""What an evaluation leaves behind: evaluation.json, evaluation.html with its pictures, a table for the terminal."""

import base64
import html
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from medgan_jax import __version__
from medgan_jax.errors import UserError
from medgan_jax.evaluation.protocol import Evaluation, Figure
from medgan_jax.images import encode_png, image_grid, replace_file
from medgan_jax.metrics.distribution.bootstrap import Estimate

JSON = "evaluation.json"
PAGE = "evaluation.html"
_BETTER = {"higher": "higher is better", "lower": "lower is better", "floor": "best at its floor"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2rem .8rem .2rem 0 }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
tr.group th { padding-top: 1rem; border-bottom: 1px solid #bbb } td.small, p.small { color: #555; font-size: .85rem }
img { image-rendering: pixelated; max-width: 100%; margin: 0 1rem 1rem 0 } dt { font-weight: bold }
"""


def prepare(out: Path) -> None:
    """Makes the folder for the results, before they cost minutes. Raises UserError when it cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror}); give another folder") from error


def write(evaluation: Evaluation, out: Path) -> None:
    """Writes evaluation.json and evaluation.html into a prepared folder; the page needs no other file.

    Raises:
      OSError: a file cannot be written.
    """
    replace_file(out / JSON, (json.dumps(as_json(evaluation), indent=1, allow_nan=False) + "\n").encode())
    replace_file(out / PAGE, _page(evaluation).encode(errors="replace"))  # titles may hold bytes that are no text


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Plain values: the protocol, every figure with its interval and floor, and what was skipped."""

    def estimate(estimate: Estimate | None) -> dict[str, float | None] | None:
        if estimate is None:
            return None
        values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}

    return {
        "version": __version__,
        "protocol": evaluation.protocol,
        "figures": {
            figure.name: {
                "title": figure.title,
                "better": figure.better,
                **estimate(figure.value),
                "floor": estimate(figure.floor),
                "note": figure.note,
            }
            for figure in evaluation.figures
        },
        "skipped": list(evaluation.skipped),
    }


def table(evaluation: Evaluation) -> str:
    """Lines for a terminal: each figure with its interval, and its floor."""
    rows = [("", "fakes", "reals: the floor")]
    group, notes = "", []
    for figure in evaluation.figures:
        if figure.group != group:
            group = figure.group
            rows += [("", "", ""), (group.upper(), "", "")]
        rows.append((f"  {figure.title} ({_BETTER[figure.better]})", _spoken(figure.value), _spoken(figure.floor)))
        notes += [f"{figure.title}: {figure.note}"] if figure.note else []
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *notes, "", *(f"{name}: {value}" for name, value in evaluation.protocol.items())]
    lines += [f"not measured: {reason}" for reason in evaluation.skipped]
    return "\n".join(lines)


def _spoken(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.4g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _page(evaluation: Evaluation) -> str:
    def row(figure: Figure) -> str:
        cells = [html.escape(_spoken(estimate)) for estimate in (figure.value, figure.floor)]
        note = html.escape("; ".join(filter(None, [_BETTER[figure.better], figure.note])))
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        return f'<tr><td>{html.escape(figure.title)}</td>{numbers}<td class="small">{note}</td></tr>'

    body, group = [], ""
    for figure in evaluation.figures:
        if figure.group != group:
            group = figure.group
            body.append(
                f'<tr class="group"><th>{html.escape(group)}</th><th>fakes</th><th>reals: the floor</th><th></th>'
            )
        body.append(row(figure))
    protocol = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in evaluation.protocol.items()
    )
    skipped = "".join(f"<li>{html.escape(reason)}</li>" for reason in evaluation.skipped)
    grids = "".join(
        f"<h2>{html.escape(title)}</h2>{_picture(image_grid(images), title)}"
        for title, images in evaluation.grids.items()
    )
    fakes, partners, distances = evaluation.closest
    pairs = _picture(image_grid(np.concatenate([fakes, partners]), columns=len(fakes)), "closest pairs")
    spoken = ", ".join(f"{distance:.3f}" for distance in distances)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation of {html.escape(evaluation.protocol["fakes"])}</title>
<style>{_STYLE}</style></head><body>
<h1>Evaluation of {html.escape(evaluation.protocol["fakes"])}</h1>
<p>Each figure stands beside its floor: the same measure of as many real images, which is what a perfect generator would
get. In brackets, 95 % intervals.</p>
<table>{"".join(body)}</table>
{f"<h2>Not measured</h2><ul>{skipped}</ul>" if skipped else ""}
<h2>The closest pairs</h2>
<p>Above, the fakes nearest to {html.escape(evaluation.closest_of)}; below, what they are near to, turned to match.
Root mean squared differences at 32 px: {spoken}.</p>
{pairs}
{grids}
<h2>Protocol</h2><dl>{protocol}</dl>
</body></html>
"""


def _picture(image: np.ndarray, title: str) -> str:
    data = base64.b64encode(encode_png(image)).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
