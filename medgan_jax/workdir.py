"""The workdir of a run: the paths of its files, its lock and logs, and whether a run may go on in it."""

import contextlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medgan_jax.checkpoint import DISCRIMINATOR_FOLDER, GENERATOR_FOLDER, check_folder
from medgan_jax.config import Config, changed_fields
from medgan_jax.errors import UserError, naming
from medgan_jax.files import local_path, lock, replace_file
from medgan_jax.metrics.distribution.guard import GUARD

_TOKEN_TRIES = 10  # a second apart
_PICTURE = re.compile(r"step_([0-9]{8,15})\.png")


class Workdir:
    """The paths in a workdir, its lock, and its logs."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Touches no file. Without `writes` nothing is ever locked or written."""
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
        self.guard = path / GUARD

    def picture(self, step: int) -> Path:
        """The grid of fixed latents at `step`."""
        return self.samples / f"step_{step:08d}.png"

    def pictures(self) -> dict[int, Path]:
        """The existing grids of fixed latents, by step, in order."""
        matches = ((_PICTURE.fullmatch(path.name), path) for path in self.samples.glob("step_*.png"))
        return dict(sorted((int(match[1]), path) for match, path in matches if match and path.is_file()))

    @contextlib.contextmanager
    def opened(self, config: Config, dataset: dict[str, Any]) -> Iterator[None]:
        """Creates the workdir where it is missing, checks it, and holds its lock.

        Args:
          config: of the run.
          dataset: describes the images, see `check`.

        Raises:
          UserError: the folder cannot be written, another run is in progress in it, or see `check`.
        """
        if not self.writes:
            yield
            return
        self.check(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.lock, "a")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"workdir={self.path}: cannot be written ({error.strerror}); give another") from error
        with file:
            lock(file, f"workdir={self.path}: another training is running in it; stop that, or give another")
            self.check(config, dataset)
            yield

    def write_token(self) -> str | None:
        """Writes a random token into the folder, so that other processes can check that they see the same folder."""
        if not self.writes:
            return None
        token = secrets.token_hex(16)
        with naming(self.lock):
            self.lock.write_text(token)
        return token

    def has_token(self, token: str) -> bool:
        """Whether the folder holds `token`; waits up to 10 s for it, as files appear late on network disks."""
        for _ in range(_TOKEN_TRIES):
            with contextlib.suppress(OSError):
                if self.lock.read_text() == token:
                    return True
            time.sleep(1)
        return False

    def record(self, config: Config, dataset: dict[str, Any]) -> None:
        """Writes config.json and dataset.json; the config last, so that where it exists both do."""
        if not self.writes:
            return
        self.samples.mkdir(exist_ok=True)
        write_json(self.dataset, dataset)
        write_json(self.config, config.to_dict())

    def check(self, config: Config, dataset: dict[str, Any] | None = None) -> None:
        """Checks that a run may start, or go on, in this workdir; changes nothing.

        Args:
          config: of the run.
          dataset: "digest" and "num_images" of its images; None where they are not loaded yet.

        Raises:
          UserError: the path is a file, or lies in the image folder; or it holds a run with other hyperparameters or
            images.
        """
        check_folder("workdir", self.path)
        if config.data.source == "folder":
            images = local_path("data.path", config.data.path).resolve()
            for field, place in (("workdir", self.path), ("output_prefix", config.output_prefix)):
                if place and local_path(field, place).resolve().is_relative_to(images):
                    raise UserError(
                        f"{field}={place}: lies within data.path={config.data.path}, where its pictures would be "
                        "trained on; give another"
                    )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"workdir={self.path}: is a file; give a folder")
        if not self.config.exists():
            if self.checkpoints.exists():
                raise UserError(f"workdir={self.path}: has checkpoints but no config.json; give another")
            if seeds := sorted(self.path.glob("seed_*/config.json")):
                raise UserError(
                    f"workdir={self.path}: holds runs of several seeds; give --seeds to go on with all of them, or "
                    f"workdir={seeds[0].parent} with one"
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
                f"workdir={self.path}: holds a training that differs in {'; '.join(changes)}. "
                "Undo the change to continue it, or give another workdir"
            )

    def forget_after(self, step: int) -> None:
        """Deletes the log lines and pictures of later steps, which a resumed run writes again.

        The alarms of a rollback stay, as the run does not meet them again; but not those of a rollback that a crash
        prevented, which is not in rollbacks.jsonl.
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
        """Appends a line to a log. It is on the disk when this returns, so no checkpoint is newer than its log."""
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

    def best_value(self, step: int | None, how: dict[str, str]) -> float:
        """The value at `step`, the best one so far; infinity where it was chosen in another way.

        `how` has the measure as `best_by`, and the `features` that it is of, as in evaluations.jsonl.
        """
        lines = (line for line in read_lines(self.evaluations) if line["step"] == step)
        return next((line[how["best_by"]] for line in lines if how.items() <= line.items()), math.inf)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, without any that a crash cut short; nothing where there is no such file."""
    if not path.exists():
        return
    for text in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def read_json(path: Path, *, remedy: str = "restore it or give another workdir") -> dict[str, Any]:
    """Reads a JSON object. Raises UserError, which ends in `remedy`, where the file is missing or damaged."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is missing or damaged ({error}); {remedy}") from error
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes an object as JSON: whole, or not at all."""
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode())
