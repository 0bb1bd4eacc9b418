"""What a workdir tells of its training, read with patience: whatever is missing or damaged becomes a sentence."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from medgan_jax.errors import UserError, abbreviate, reason_of
from medgan_jax.workdir import Workdir, read_json, read_lines

_LOST = {  # what the page cannot show without a file, and how to have it the next time
    "config": "The configuration is not known, nor the total of steps.",
    "dataset": "Counts per label and the total of steps are not known.",
    "runs": "The command is not known: an older version trained this.",
    "metrics": "There are no losses, scores or gradient norms to plot.",
    "evaluations": "It is not known how good the images are; evaluate_every_steps above 0 measures it.",
    "health": "Diversity and spectral norms are not known; monitor_every_steps above 0 watches them, for alarms.",
}
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
        """The last step that any file tells of."""
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
        """Whether alarms could have been raised."""
        return bool(self.logs["health"] or self.logs["alarms"] or number(self.config, "monitor_every_steps"))


def read_record(files: Workdir) -> Record:
    """Reads what there is.

    Raises:
      UserError: it is no folder, or holds no training at all.
    """
    if not files.path.is_dir():
        found = "is a file" if files.path.exists() else "there is no such folder"
        raise UserError(f"{files.path}: {found}; give the workdir of a training")
    missing: list[tuple[str, str]] = []
    config = _object(files, "config", missing)
    record = Record(
        files=files,
        config=config,
        dataset=_object(files, "dataset", missing),
        evaluation=_object(files, "evaluation", missing),
        logs={
            name: _lines(getattr(files, name), name, config, missing)
            for name in ("runs", "metrics", "evaluations", "health", "alarms", "rollbacks")
        },
        pictures=files.pictures(),
        missing=missing,
    )
    if not files.config.exists() and not record.logs["metrics"] and not record.pictures:
        raise UserError(f"{files.path}: has no config.json, metrics.jsonl or pictures; give the workdir of a training")
    missing += _gaps(record.pictures, number(config, "sample_every_steps"))
    if record.logs["metrics"] and not any(number(line, "grad_norm_gen") for line in record.logs["metrics"]):
        missing.append(("metrics.jsonl has no gradient norms", "An older version wrote it; they cannot be plotted."))
    return record


def number(values: dict[str, Any], name: str) -> float | None:
    """A finite number, or None where there is anything else."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _object(files: Workdir, name: str, missing: list[tuple[str, str]]) -> dict[str, Any]:
    path = files.path / "evaluation" / "evaluation.json" if name == "evaluation" else getattr(files, name)
    if not path.is_file():  # a named pipe would be waited for
        if name != "evaluation":  # made on demand
            missing.append((f"{path.name} is missing", _LOST[name]))
        return {}
    try:
        return read_json(path)
    except (UserError, RecursionError):
        missing.append((f"{path.name} is damaged", _LOST.get(name, "Its table is not shown; run evaluate.py again.")))
        return {}


def _lines(path: Path, name: str, config: dict[str, Any], missing: list[tuple[str, str]]) -> list[dict[str, Any]]:
    if not path.is_file():
        interval = {"evaluations": "evaluate_every_steps", "health": "monitor_every_steps"}.get(name)
        if name in _LOST and (interval is None or config.get(interval) != 0):  # 0: it was not wanted
            missing.append((f"{path.name} is missing", _LOST[name]))
        return []
    try:
        text = path.read_text()
        lines = [line for line in read_lines(path) if type(line["step"]) is int and 0 <= line["step"] < _MAX_STEP]
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "it is no text"
        missing.append((f"{path.name} cannot be read ({reason})", _LOST.get(name, "It is left out.")))
        return []
    written = sum(bool(line.strip()) for line in text.splitlines())
    if text and not text.endswith("\n") and len(lines) < written:
        written -= 1
        missing.append(
            (f"The last line of {path.name} is cut short", "It is being written now, or was when a training crashed.")
        )
    if len(lines) < written:
        missing.append((f"{path.name} has {written - len(lines)} lines that cannot be read", "They are left out."))
    return sorted(lines, key=lambda line: line["step"])


def _gaps(pictures: dict[int, Path], every: float | None) -> list[tuple[str, str]]:
    if not pictures:
        return [("There are no pictures in samples/", "There is nothing to play.")]
    first, last = min(pictures), max(pictures)
    if not every or every < 1 or (last - first) / every > 1_000_000:
        return []
    every = int(every)
    absent = [step for step in range(-(-first // every) * every, last, every) if step not in pictures]
    if not absent:
        return []
    what = "The picture of step" if len(absent) == 1 else "The pictures of steps"
    return [
        (
            f"{what} {abbreviate(absent, 5)} {'is' if len(absent) == 1 else 'are'} missing",
            f"The player passes over {'it' if len(absent) == 1 else 'them'}. config.json asks for one every {every} "
            "steps; if that was changed in the course of the training, nothing is lost.",
        )
    ]
