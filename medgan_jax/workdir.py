"""The workdir of a training: its files, who may write them, and what makes a continuation legitimate."""

import contextlib
import fcntl
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medgan_jax.checkpoint import DISCRIMINATOR_FOLDER, GENERATOR_FOLDER
from medgan_jax.config import Config, changed_fields
from medgan_jax.errors import UserError, naming
from medgan_jax.images import replace_file

_MARK_TRIES = 10  # a second apart
_PICTURE = re.compile(r"step_([0-9]{8,15})\.png")


class Workdir:
    """Paths in a workdir, its metrics log, its pictures, and its lock."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Names the files below `path`; touches none. Without `writes` nothing is ever locked or written."""
        self.path = path
        self.writes = writes
        self.lock = path / ".lock"
        self.config = path / "config.json"
        self.dataset = path / "dataset.json"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.health = path / "health.jsonl"
        self.alarms = path / "alarms.jsonl"
        self.rollbacks = path / "rollbacks.jsonl"
        self.runs = path / "runs.jsonl"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"
        self.samples = path / "samples"
        self.reals = self.samples / "reals.png"
        self.checkpoints = path / "checkpoints"
        self.generator = path / GENERATOR_FOLDER
        self.discriminator = path / DISCRIMINATOR_FOLDER
        self.best = path / "best"

    def picture(self, step: int) -> Path:
        """The grid of fixed latents at `step`."""
        return self.samples / f"step_{step:08d}.png"

    def pictures(self) -> dict[int, Path]:
        """The grids of fixed latents that are there, by step, in order."""
        matches = ((_PICTURE.fullmatch(path.name), path) for path in self.samples.glob("step_*.png"))
        return dict(sorted((int(match[1]), path) for match, path in matches if match and path.is_file()))

    @contextlib.contextmanager
    def opened(self, config: Config, dataset: dict[str, Any]) -> Iterator[None]:
        """Takes the workdir for this process: creates it, or checks that what is there may be continued.

        Args:
          config: the training to run.
          dataset: describes the images; its "digest" decides whether they are the same.

        Raises:
          UserError: the path is a file or cannot be written, another process trains here, or a training with other
            hyperparameters or images is here already. Nothing was changed then.
        """
        if not self.writes:
            yield
            return
        self.check(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.lock, "a")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"--workdir={self.path}: cannot be written ({error.strerror}); give another") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"--workdir={self.path}: another training is running in it") from None
            self.check(config, dataset)
            yield

    def mark(self) -> str | None:
        """Leaves a mark in the opened folder, by which other processes can tell that theirs is the same one."""
        if not self.writes:
            return None
        token = secrets.token_hex(16)
        with naming(self.lock):
            self.lock.write_text(token)
        return token

    def bears(self, token: str) -> bool:
        """Whether `token` was left in the folder; waits some seconds for it, as network disks may need."""
        for _ in range(_MARK_TRIES):
            with contextlib.suppress(OSError):
                if self.lock.read_text() == token:
                    return True
            time.sleep(1)
        return False

    def record(self, config: Config, dataset: dict[str, Any]) -> None:
        """Writes down what is trained on what. The config comes last: where it is, the other is."""
        if not self.writes:
            return
        self.samples.mkdir(exist_ok=True)
        write_json(self.dataset, dataset)
        write_json(self.config, config.to_dict())

    def check(self, config: Config, dataset: dict[str, Any] | None = None) -> None:
        """Checks that what is in the workdir, if anything, may be continued; changes nothing.

        Args:
          config: the training to run.
          dataset: describes its images; leave it out where they are not known yet.

        Raises:
          UserError: the path is a file, or lies among the images; or a training with other hyperparameters or images is
            here.
        """
        if config.data.source == "folder":
            for field, place in (("--workdir", self.path), ("output_prefix", config.output_prefix)):
                if place and _resolved(place).is_relative_to(_resolved(config.data.path)):
                    raise UserError(
                        f"{field}={place}: lies within data.path={config.data.path}, where its pictures would be "
                        "trained on; give another"
                    )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path}: is a file; give a folder")
        if not self.config.exists():
            if self.checkpoints.exists():
                raise UserError(f"--workdir={self.path}: has checkpoints but no config.json; give another")
            if seeds := sorted(self.path.glob("seed_*/config.json")):
                raise UserError(
                    f"--workdir={self.path}: holds runs of several seeds; give --seeds to go on with all of them, or "
                    f"--workdir={seeds[0].parent} with one"
                )
            return
        changes = changed_fields(read_json(self.config), config)
        if dataset:
            before = read_json(self.dataset)
            if before.get("digest") != dataset["digest"]:
                changes.append(
                    f"the images: {before.get('num_images')} with digest {before.get('digest')} -> "
                    f"{dataset['num_images']} with digest {dataset['digest']}"
                )
        if changes:
            raise UserError(
                f"--workdir={self.path}: holds a training that differs in {'; '.join(changes)}. "
                "Undo the change to continue it, or give another workdir"
            )

    def forget_after(self, step: int) -> None:
        """Drops what the logs and pictures tell past `step`, which a restored training will write again.

        Alarms that led back to an earlier step stay, as what they tell of is not written again; those of a rollback
        that a crash came before do not.
        """
        if not self.writes:
            return
        rollbacks = len(list(read_lines(self.rollbacks)))
        for path in (self.metrics, self.evaluations, self.health, self.alarms):
            if path.exists():
                kept = [
                    line
                    for line in read_lines(path)
                    if (line["rollback"] <= rollbacks if "rollback" in line else line["step"] <= step)
                ]
                replace_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        for later, path in self.pictures().items():
            if later > step:
                path.unlink()

    def append(self, path: Path, line: dict[str, Any]) -> None:
        """Adds one line to a log, on the disk when this returns: no checkpoint is newer than its log."""
        if not self.writes:
            return
        with naming(path), open(path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a crash cut the last line short
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def value_of(self, step: int | None, measure: str) -> float:
        """By which `step` was chosen for `best`, in evaluations.jsonl; infinity where that was another measure."""
        lines = (line for line in read_lines(self.evaluations) if line["step"] == step)
        return next((line[measure] for line in lines if line.get("best_by") == measure), math.inf)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that hold a step; others were cut short by a crash. None where there is no such file."""
    if not path.exists():
        return
    for text in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def _resolved(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def read_json(path: Path, *, remedy: str = "restore it or give another --workdir") -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, ending in `remedy`, when there is none."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is missing or damaged ({error}); {remedy}") from error
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes an object as JSON: whole, or not at all."""
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode())
