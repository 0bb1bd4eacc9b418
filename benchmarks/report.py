"""From samples to a verdict, a table and a file of results. No measuring here."""

import dataclasses
import json
import math
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quiet import TOLERATED


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a row has to reach; both in the row's unit."""

    must: float
    aim: float
    at_least: bool  # else: at most
    unit: str  # x | % | s

    def verdict(self, value: float) -> str:
        """How `value` stands: "aim", "must" (between the two) or "missed"."""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if value >= bound if self.at_least else value <= bound:
                return name
        return "missed"


@dataclasses.dataclass
class Measurement:
    """What a row measured: samples taken in turns, sample i of each list side by side.

    `value` is what the bounds are for. `ours` and `peer` are what it was made from, in `unit`; `peer` is whatever
    stands opposite, another framework or a bound of the machine.
    """

    value: list[float]
    ours: list[float]
    peer: list[float]
    unit: str
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else was seen: sizes, versions, parts
    problem: str = ""  # why there is no value


def summary(samples: Sequence[float]) -> dict[str, float] | None:
    """Median, quartiles and number of the samples; None when there are none."""
    if not samples:
        return None
    low, middle, high = samples * 3 if len(samples) == 1 else statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "median": _rounded(middle),
        "quartile_1": _rounded(low),
        "quartile_3": _rounded(high),
        "samples": len(samples),
    }


def row(name: str, title: str, bounds: Bounds, measured: Measurement, **record: Any) -> dict[str, Any]:
    """A row of the results, JSON-able; `record` is kept beside it."""
    value = summary(measured.value)
    return {
        "name": name,
        "title": title,
        "ratio": value,
        "unit": bounds.unit,
        "must": bounds.must,
        "aim": bounds.aim,
        "at_least": bounds.at_least,
        "verdict": bounds.verdict(value["median"]) if value else measured.problem or "not measured",
        "ours": summary(measured.ours),
        "peer": summary(measured.peer),
        "ours_and_peer_in": measured.unit,
        "notes": measured.notes,
        **record,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table: medians, quartiles in brackets."""
    lines = ["| | ours | peer | ratio | must | aim | |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        unit = {"x": "x", "%": " %", "s": " s"}[r["unit"]]
        sign = "" if r["at_least"] else "≤ "
        seen = [_cell(r[key], " " + r["ours_and_peer_in"]) for key in ("ours", "peer")]
        bounds = [f"{sign}{r[key]:g}{unit}" for key in ("must", "aim")]
        busy = r.get("others_busy_percent") or 0
        verdict = r["verdict"] + (f"; the machine was busy ({busy:.0f} %)" if busy > TOLERATED else "")
        cells = [r["title"], *seen, _cell(r["ratio"], unit, quartiles=True), *bounds, verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(folder: Path, results: dict[str, Any]) -> Path:
    """Writes MACHINE.json in `folder`; rows measured before on this machine stay, each with its commit.

    So does a row of more samples than its new measurement at the same commit has. Rows of another machine or version
    of a library go: a file never mixes them.
    """
    path = folder / f"{slug(results['machine']['name'])}.json"
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = {}
    versions = before.get("versions", {}) | results["versions"]
    if (
        before.get("machine") == results["machine"] and versions | before["versions"] == versions
    ):  # one may lack the peer's, but none may differ
        new = {row["name"]: row for row in results["rows"]}
        kept = [_better(new.pop(row["name"], row), row) for row in before["rows"]]
        results = results | {"versions": versions, "rows": kept + list(new.values())}
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def check_writable(folder: Path) -> None:
    """Makes `folder`. Raises OSError when `save` could not write there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        pass


def _better(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    samples = [row["ratio"]["samples"] if row["ratio"] else 0 for row in (new, old)]
    return old if new["commit"] == old["commit"] and samples[1] > samples[0] else new


def slug(name: str) -> str:
    """A file's name for a machine: "Intel(R) Xeon(R) Processor, 2 cores" is intel-xeon-processor-2-cores."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def _cell(summed: Mapping[str, float] | None, unit: str, *, quartiles: bool = False) -> str:
    if not summed:
        return ""
    text = f"{summed['median']:.4g}{unit}"
    return f"{text} ({summed['quartile_1']:.3g} to {summed['quartile_3']:.3g})" if quartiles else text


def _rounded(value: float) -> float:
    """To five significant digits, so that files of results can be read."""
    return round(value, 4 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else value
