"""What the rows share: how much is measured, the processes of both sides, and turns."""

import dataclasses
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.pipe import ROOT, Worker, WorkerError
from medgan_jax.errors import UserError, reason_of

INSTALL_TORCH = "pip install '.[bench]', or give --torch_python=PATH"
PEER_MISSING = f"PyTorch is missing: {INSTALL_TORCH}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to measure, and where the peer lives."""

    torch_python: str | None = None  # an interpreter that imports torch; None when there is none
    rounds: int = 11  # of the rows that compare steps
    turn_seconds: float = 4.0  # how long one side runs before the other does
    slow_rounds: int = 5  # of the rows that start whole commands
    segments: int = 16  # of the training command, for its overhead: a small difference of large numbers
    images: int = 10_000  # of the sampling row
    maps: int = 64  # feature maps: 64 is the published networks
    say: Callable[[str], None] = functools.partial(print, file=sys.stderr, flush=True)


def find_torch(given: str | None) -> str | None:
    """The interpreter for the peer: `given`, or else this one when it has torch; None when there is none.

    Raises:
      UserError: `given` cannot import torch.
    """
    if not given:
        return sys.executable if importlib.util.find_spec("torch") else None
    try:
        done = subprocess.run([given, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--torch_python={given}: {reason_of(error)}; give a Python interpreter") from error
    if not done.stdout.strip():
        raise UserError(f"--torch_python={given}: this interpreter cannot import torch; pip install torch there")
    return given


def environment(*, cpu: bool = False, caches: str | None = None) -> dict[str, str]:
    """Of the processes we start: `cpu` keeps them off other devices, `caches` is a folder instead of the user's."""
    variables = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two processes share a GPU
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cpu:
        variables["JAX_PLATFORMS"] = "cpu"
    if caches:
        variables["XDG_CACHE_HOME"] = caches
    return variables


def our_worker(**options: Any) -> Worker:
    """Our side, in a process of its own; `options` are those of `environment`."""
    return Worker([sys.executable, "-m", "benchmarks.ours"], environment(**options))


def torch_worker(settings: Settings, module: str = "torch_step") -> Worker:
    """The peer, in a process of its own: one of the modules here that import PyTorch."""
    return Worker([settings.torch_python, "-m", f"benchmarks.{module}"], environment())


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for the time of a `with`."""
    folder = Path(tempfile.mkdtemp(prefix="medgan_jax_benchmark_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_command(script: str, *arguments: str, caches: Path) -> float:
    """Runs a command to its end; seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env=environment(caches=str(caches)),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise WorkerError(f"{script} ended with code {done.returncode}: {(done.stderr.splitlines() or [''])[-1]}")
    return time.perf_counter() - start


def seconds_per_step(worker: Worker) -> float:
    """Warms up, and measures the speed roughly."""
    worker.ask("run", steps=3)  # the first ones allocate
    return worker.ask("run", steps=2)["seconds"] / 2


def in_turns(
    settings: Settings, sides: Mapping[str, Callable[[], float]], *, rounds: int, unit: str
) -> dict[str, list[float]]:
    """Samples of "ours" and "peer", an empty list where there is none; each round asks both, in alternating order."""
    samples: dict[str, list[float]] = {"ours": [], "peer": []}
    for i in range(rounds):
        for name in sides if i % 2 else reversed(sides):
            samples[name].append(sides[name]())
            time.sleep(0.05)  # threads that spin for a moment after their work are done by then
        seen = ", ".join(f"{name} {samples[name][-1]:.4g} {unit}" for name in sides)
        settings.say(f"  round {i + 1} of {rounds}: {seen}")
    return samples
