"""The result of an evaluation: evaluation.json, evaluation.html with its pictures, and a table for the terminal."""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgan_jax import __version__
from medgan_jax.errors import UserError
from medgan_jax.evaluation.protocol import VERDICTS, Evaluation
from medgan_jax.html import environment, inline_grid
from medgan_jax.images import replace_file
from medgan_jax.metrics.distribution.bootstrap import Estimate

JSON = "evaluation.json"
PAGE = "evaluation.html"
_FIRST = {  # in plain words
    "kid": "distance from real images: KID, lower is better",
    "recall": "share of their variety: recall, higher is better",
    "memorization": "share of copies: memorization, lower is better",
}
_BETTER = {"higher": "higher is better", "lower": "lower is better", "reals": "best where reals are"}


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
    fakes, partners, distances = evaluation.closest
    html = (
        environment(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            evaluation=evaluation,
            better=_BETTER,
            first={_FIRST[figure.name]: figure for figure in evaluation.figures if figure.verdict},
            verdicts=VERDICTS,
            spoken=_spoken,
            pairs=inline_grid(np.concatenate([fakes, partners]), columns=len(fakes)),
            distances=", ".join(f"{distance:.3f}" for distance in distances),
            grids={title: inline_grid(images) for title, images in evaluation.grids.items()},
        )
    )
    replace_file(out / PAGE, html.encode(errors="replace"))  # titles may hold bytes that are no text


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Plain values: protocol, every figure with its interval and that of reals, memorized fakes, what was skipped."""

    def plain(estimate: Estimate) -> dict[str, float | None]:
        values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}

    return {
        "version": __version__,
        "protocol": evaluation.protocol,
        "figures": {
            figure.name: {
                "title": figure.title,
                "better": figure.better,
                **plain(figure.value),
                "reals": figure.reals and plain(figure.reals),
                "note": figure.note,
                **({"verdict": figure.verdict} if figure.verdict else {}),
            }
            for figure in evaluation.figures
        },
        "memorized": [
            {"fake": fake, "training_image": image, "distance": float(f"{distance:.6g}")}
            for fake, image, distance in evaluation.memorized
        ],
        "skipped": list(evaluation.skipped),
    }


def table(evaluation: Evaluation) -> str:
    """Lines for a terminal: the figures to look at first, each with a word; then all of them, beside those of reals."""
    lines: list[str] = []
    first = [figure for figure in evaluation.figures if figure.verdict]
    if first:
        rows: list[tuple[str, ...]] = [("LOOK AT THESE FIRST", "fakes", "reals", "")]
        rows += [(f"  {_FIRST[f.name]}", _spoken(f.value), _spoken(f.reals), f.verdict.upper()) for f in first]
        words = {figure.verdict for figure in first}
        lines += [*_columns(rows), "", *(f"  {word}: {means}" for word, means in VERDICTS.items() if word in words), ""]
    rows, notes = [("", "fakes", "reals")], []
    group = ""
    for figure in evaluation.figures:
        if figure.group != group:
            group = figure.group
            rows.append((group.upper(), "", ""))
        rows.append((f"  {figure.title} ({_BETTER[figure.better]})", _spoken(figure.value), _spoken(figure.reals)))
        notes += [f"{figure.title}: {figure.note}"] if figure.note else []
    lines += [*_columns(rows), "", *notes, "", *(f"{name}: {value}" for name, value in evaluation.protocol.items())]
    lines += [f"not measured: {reason}" for reason in evaluation.skipped]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with the columns of the rows aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _spoken(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.3g} ({estimate.low:.2g} to {estimate.high:.2g})"
