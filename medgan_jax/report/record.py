"""Reads what a workdir holds of a training. A file that is missing, damaged or being written becomes a sentence."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgan_jax.errors import UserError, reason_of
from medgan_jax.workdir import Workdir

Lines = Sequence[dict[str, Any]]

_LOGS = ("runs", "metrics", "evaluations", "health", "alarms", "rollbacks")  # attributes of Workdir
_LOST = {  # what the page cannot show without a file, and how to have it the next time
    "config": "The configuration is not known, nor the total of steps.",
    "dataset": "Counts per label and the total of steps are not known.",
    "runs": "The command is not known.",
    "metrics": "There are no losses, scores or gradient norms to plot.",
    "evaluations": "It is not known how good the images are; evaluate_every_steps above 0 measures it.",
    "health": "Diversity and spectral norms are not known; monitor_every_steps above 0 runs health checks.",
}
_ASKED_BY = {"evaluations": "evaluate_every_steps", "health": "monitor_every_steps"}  # 0: the log is not wanted
_MAX_STEP = 2**53  # up to which a float holds every step


@dataclasses.dataclass
class Record:
    """The files of a workdir as they can be read; what is missing is empty.

    Attributes:
      files: the workdir.
      config: config.json.
      dataset: dataset.json.
      evaluation: evaluation/evaluation.json.
      logs: lines by the log's attribute in Workdir, such as "metrics", in the order of their steps.
      pictures: the grids of fixed latents by step, in order.
      missing: (what is missing or damaged, what that costs), sentences.
    """

    files: Workdir
    config: dict[str, Any]
    dataset: dict[str, Any]
    evaluation: dict[str, Any]
    logs: dict[str, list[dict[str, Any]]]
    pictures: dict[int, Path]
    missing: list[tuple[str, str]]

    @property
    def step(self) -> int:
        """The last step in any log, or of any picture."""
        lines = (self.logs[name][-1]["step"] for name in ("metrics", "evaluations", "health") if self.logs[name])
        return max([0, *lines, *self.pictures])

    @property
    def total_steps(self) -> int | None:
        """The length of the training, None where it is not known."""
        steps, epochs, batch = (number(self.config, name) for name in ("num_steps", "num_epochs", "batch_size"))
        images = number(self.dataset, "num_images")
        if not steps and epochs and images and batch:
            steps = epochs * (images // batch)
        return int(steps) if steps and 0 < steps < _MAX_STEP else None

    @property
    def is_monitored(self) -> bool:
        """Whether there are health checks, which could have raised alarms."""
        return bool(self.logs["health"] or self.logs["alarms"] or number(self.config, "monitor_every_steps"))


def read_record(files: Workdir) -> Record:
    """Reads what there is.

    Raises:
      UserError: it is no folder, or holds no training.
    """
    if not files.path.is_dir():
        found = "is a file" if files.path.exists() else "there is no such folder"
        raise UserError(f"{files.path}: {found}; give the workdir of a training")
    missing: list[tuple[str, str]] = []
    config = _read_object(files.config, missing)
    record = Record(
        files=files,
        config=config,
        dataset=_read_object(files.dataset, missing),
        evaluation=_read_object(_evaluation(files), missing),
        logs={name: _read_log(getattr(files, name), config, missing) for name in _LOGS},
        pictures=files.pictures(),
        missing=missing,
    )
    if not files.config.exists() and not record.logs["metrics"] and not record.pictures:
        raise UserError(f"{files.path}: has no config.json, metrics.jsonl or pictures; give the workdir of a training")
    if not record.pictures:
        missing.append(("There are no pictures in samples/", "There is nothing to play."))
    return record


def sources(files: Workdir) -> list[Path]:
    """The files that a report is made of, whether or not they are there."""
    logs = (getattr(files, name) for name in _LOGS)
    return [files.config, files.dataset, *logs, files.reals, _evaluation(files), *files.pictures().values()]


def number(values: dict[str, Any], name: str) -> float | None:
    """A finite number, or None where there is anything else."""
    value = values.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    return None


def measure_names(evaluations: Lines) -> list[str]:
    """The measures in lines of evaluations.jsonl, in their order, without those of the reals (`NAME_reals`)."""
    names = dict.fromkeys(name for line in evaluations for name in line if number(line, name) is not None)
    return [name for name in names if name != "step" and not name.endswith("_reals")]


def _evaluation(files: Workdir) -> Path:
    return files.path / "evaluation" / "evaluation.json"


def _read_object(path: Path, missing: list[tuple[str, str]]) -> dict[str, Any]:
    cost = _LOST.get(path.stem, "Its table is not shown; run evaluate.py again.")
    if not path.is_file():  # a named pipe would be waited for
        if path.stem in _LOST:  # evaluation.json is made on demand
            missing.append((f"{path.name} is missing", cost))
        return {}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        missing.append((f"{path.name} is damaged", cost))
        return {}
    return values


def _read_log(path: Path, config: dict[str, Any], missing: list[tuple[str, str]]) -> list[dict[str, Any]]:
    name = path.stem
    if not path.is_file():
        if name in _LOST and config.get(_ASKED_BY.get(name, "")) != 0:
            missing.append((f"{path.name} is missing", _LOST[name]))
        return []
    try:
        *texts, last = path.read_text(errors="replace").split("\n")  # of a complete file the last one is empty
    except OSError as error:
        missing.append((f"{path.name} cannot be read ({reason_of(error)})", _LOST.get(name, "It is left out.")))
        return []
    texts = [text for text in texts if text.strip()]
    lines = [line for line in map(_parsed, texts) if line]
    if damaged := len(texts) - len(lines):
        missing.append((f"{path.name} has {damaged} lines that cannot be read", "They are left out."))
    if line := _parsed(last):
        lines.append(line)
    elif last:
        cost = "It is being written now, or was when a training crashed."
        missing.append((f"The last line of {path.name} is cut short", cost))
    return sorted(lines, key=lambda line: line["step"])


def _parsed(text: str) -> dict[str, Any] | None:
    """A line of a log, None where it is none: an object with a step."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_line = isinstance(line, dict) and type(line.get("step")) is int and 0 <= line["step"] < _MAX_STEP
    return line if is_line else None
