"""Long-lived worker processes that answer questions over a pipe, one JSON line each way.

The standard library only: one of the workers runs in an environment that holds PyTorch and nothing of ours.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]


class WorkerError(Exception):
    """A worker failed; the message is one line, with the last one that it wrote to stderr."""


def serve(operations: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers questions from stdin until it closes.

    Args:
      operations: by name; each takes the question's other fields as keywords and returns the answer, JSON-able.
    """
    # Whatever a library prints goes to stderr: the answers keep the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which keeps nothing back: what ends a worker is the last line
    for line in sys.stdin:
        question = json.loads(line)
        answer = operations[question.pop("do")](**question)
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The asking side of `serve`. Workers wait without using a core, so only the one that is asked works."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts `command` in the project's folder, with `environment` in place of this process's."""
        self.command = list(command)
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one question. Raises WorkerError when the worker ends instead."""
        try:
            self._process.stdin.write(json.dumps({"do": operation, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().strip().splitlines() or ["nothing on stderr"]
        raise WorkerError(f"{' '.join(self.command)}: ended with code {code} at {operation!r}: {said[-1].strip()}")

    def __enter__(self) -> Self:
        """Started already."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the worker."""
        self._process.kill()
        self._process.communicate()  # waits
        self._stderr.close()


def peak_memory() -> int:
    """The most bytes that this process has had resident, from Linux; 0 elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
