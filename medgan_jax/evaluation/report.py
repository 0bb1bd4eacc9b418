"""The result of an evaluation: figures with intervals, beside those of real images; as text, HTML and plain values."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgan_jax import __version__
from medgan_jax.html import environment, inline_grid
from medgan_jax.metrics.distribution.bootstrap import Estimate

VERDICTS = {
    "good": "as real images, as far as so few can tell",
    "short": "worse than real images",
    "poor": "much worse: KID above that of real images at low resolution, recall below half theirs, or 5 % of copies",
}
_FIRST = {  # in plain words
    "kid": "distance from real images: KID, lower is better",
    "recall": "share of their variety: recall, higher is better",
    "memorization": "share of copies: memorization, lower is better",
}
_BETTER = {"higher": "higher is better", "lower": "lower is better", "reals": "best where reals are"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One metric of the fakes, and of reals.

    Attributes:
      name: as in evaluation.json.
      title: for people.
      group: what kind of metric it is.
      better: "higher", "lower", or "reals" where the value of the reals is best.
      value: of the fakes.
      reals: of the reals; None where there is none.
      note: what must be known to read it.
      verdict: of the figures to look at first: one of `VERDICTS`.
    """

    name: str
    title: str
    group: str
    better: str
    value: Estimate
    reals: Estimate | None
    note: str = ""
    verdict: str = ""


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The result of an evaluation.

    Attributes:
      protocol: what was compared with what, and how.
      figures: in the order to show them.
      skipped: metrics that could not be computed, each as "NAME: reason".
      grids: pictures, each by title: uint8 (N, H, W, C).
      closest: the ten fakes nearest to the training set (or else to the reals): fakes, their neighbours as turned to
        match, and their distances, 1 - the correlation of pixels.
      closest_of: what those neighbours are, for people.
      memorized: the fakes that count as memorized, the closest 1,000 of them, closest first: each as its index, that of
        its training image, and their distance.
    """

    protocol: dict[str, Any]
    figures: tuple[Figure, ...]
    skipped: tuple[str, ...]
    grids: dict[str, np.ndarray]
    closest: tuple[np.ndarray, np.ndarray, np.ndarray]
    closest_of: str
    memorized: tuple[tuple[int, int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: protocol, figures with intervals, memorized fakes, what was skipped; as in evaluation.json."""

        def plain(estimate: Estimate) -> dict[str, float | None]:
            values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}

        return {
            "version": __version__,
            "protocol": self.protocol,
            "figures": {
                figure.name: {
                    "title": figure.title,
                    "better": figure.better,
                    **plain(figure.value),
                    "reals": figure.reals and plain(figure.reals),
                    "note": figure.note,
                    **({"verdict": figure.verdict} if figure.verdict else {}),
                }
                for figure in self.figures
            },
            "memorized": [
                {"fake": fake, "training_image": image, "distance": float(f"{distance:.6g}")}
                for fake, image, distance in self.memorized
            ],
            "skipped": list(self.skipped),
        }

    def to_html(self) -> str:
        """A page that needs no other file: all figures, the closest pairs, samples, and the protocol."""
        fakes, partners, distances = self.closest
        return self._rendered(
            "page.html.j2",
            pairs=inline_grid(np.concatenate([fakes, partners]), columns=len(fakes)),
            distances=", ".join(f"{distance:.3f}" for distance in distances),
            grids={title: inline_grid(images) for title, images in self.grids.items()},
        )

    def __repr__(self) -> str:
        """The figures to look at first, each with a word; then all of them, beside those of reals."""
        lines: list[str] = []
        first = self._first()
        rows: list[tuple[str, ...]] = [("LOOK AT THESE FIRST", "fakes", "reals", "")]
        rows += [
            (f"  {title}", _spoken(figure.value), _spoken(figure.reals), figure.verdict.upper())
            for title, figure in first.items()
            if figure
        ]
        words = {figure.verdict for figure in first.values() if figure}
        lines += [
            *_columns(rows),
            *(f"  {title}: not measured, see below" for title, figure in first.items() if not figure),
        ]
        lines += ["", *(f"  {word}: {means}" for word, means in VERDICTS.items() if word in words), ""]
        rows, notes = [("", "fakes", "reals")] * bool(self.figures), []
        group = ""
        for figure in self.figures:
            if figure.group != group:
                group = figure.group
                rows.append((group.upper(), "", ""))
            rows.append((f"  {figure.title} ({_BETTER[figure.better]})", _spoken(figure.value), _spoken(figure.reals)))
            notes += [f"{figure.title}: {figure.note}"] if figure.note else []
        lines += [*_columns(rows), "", *notes, "", *(f"{name}: {value}" for name, value in self.protocol.items())]
        lines += [f"not measured: {reason}" for reason in self.skipped]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The tables, as a notebook shows them."""
        return self._rendered("tables.html.j2")

    def _rendered(self, template: str, **more: Any) -> str:
        shared = {
            "evaluation": self,
            "better": _BETTER,
            "first": self._first(),
            "verdicts": VERDICTS,
            "spoken": _spoken,
        }
        return environment(Path(__file__).parent).get_template(template).render(**shared, **more)

    def _first(self) -> dict[str, Figure | None]:
        """The figures to look at first, by what they are in plain words; None where they were not measured."""
        found = {figure.name: figure for figure in self.figures if figure.verdict}
        return {title: found.get(name) for name, title in _FIRST.items()}


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with the columns of the rows aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _spoken(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return "{} ({} to {})".format(*map(_short, (estimate.value, estimate.low, estimate.high)))


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
