"""Measures this machine: our training and sampling against PyTorch's and against the machine's own bounds.

python -m benchmarks                                  every row: half an hour on 2 CPU cores
python -m benchmarks --rows=step64,memory             some of them
python -m benchmarks --quick                          fewer rounds and images: faster, and noisier

Prints a table and writes it to OUT/MACHINE.json; rows measured there before at the same commit are kept, and replaced
only by rows of as many samples. Leave the machine alone meanwhile. The peer needs PyTorch: pip install '.[bench]', or
--torch_python.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measuring import INSTALL_TORCH, PEER_MISSING, Settings, environment, find_torch
from benchmarks.pipe import ROOT, WorkerError
from benchmarks.quiet import TOLERATED, OthersBusy
from benchmarks.rows import ROWS
from medgan_jax.errors import UserError, reported


def main(arguments: list[str]) -> None:
    """Measures, prints and writes."""
    options = _parser().parse_args(arguments)
    names = list(ROWS) if options.rows is None else options.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise UserError(f"--rows: there is no row {unknown[0]!r}; give some of {','.join(ROWS)}")
    torch_python = find_torch(options.torch_python)
    if not torch_python:
        print(f"no PyTorch here: rows against it get no ratio; {INSTALL_TORCH}", file=sys.stderr)
    images = (1000 if options.quick else 10_000) if options.sample_images is None else options.sample_images
    if images < 256:
        raise UserError(f"--sample_images={images}: must be at least 256, to measure anything")
    settings = Settings(torch_python=torch_python, images=images)
    if options.quick:
        settings = Settings(
            torch_python=torch_python, images=images, rounds=3, turn_seconds=2, slow_rounds=2, segments=4
        )
    report.check_writable(options.out)  # before half an hour is spent
    about = _about()
    results = {
        "machine": _machine(about),
        "versions": about["versions"] | _torch_version(torch_python),
        "rows": [],
    }
    commit = options.commit or _commit(options.out)
    path, failed = None, False
    for name in names:
        claim = ROWS[name]
        settings.say(f"{name}: {claim.title}")
        command = shlex.join(["python", "-m", "benchmarks", *arguments])
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"commit": commit, "date": date, "command": command}
        problem = ""
        if claim.needs_gpu and about["backend"] != "gpu":
            problem = "needs a GPU"
        elif claim.needs_gpu and not torch_python and name != "gpu_share":
            problem = PEER_MISSING
        with OthersBusy() as others:
            try:
                measured = report.Measurement([], [], [], "", problem=problem) if problem else claim.measure(settings)
            except WorkerError as error:  # the other rows are worth having
                measured = report.Measurement([], [], [], "", problem=f"failed: {error}")
                failed = True
        if not problem:
            record["others_busy_percent"] = others.percent
            if (others.percent or 0) > TOLERATED:
                settings.say(f"  WARNING: other processes took {others.percent} % of the cores; measure again without")
        row = report.row(name, claim.title, claim.bounds, measured, **record)
        settings.say(f"  {row['verdict']}")
        results["rows"].append(row)
        path = report.save(options.out, results)  # after each row: an interruption costs one
    print(report.table(results["rows"]))
    print(f"\n{results['machine']['name']}; commit {commit}; written to {path}")
    if failed:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:15} {row.title}" for name, row in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"rows:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rows", metavar="A,B,...", help="which rows; all by default")
    parser.add_argument(
        "--torch_python", metavar="PATH", help="an interpreter that has PyTorch; by default this one, if it has"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="a folder for the results")
    parser.add_argument("--quick", action="store_true", help="less exact: 2 or 3 rounds, 1,000 images")
    parser.add_argument("--sample_images", type=int, metavar="N", help="images of the sampling row; 10,000 by default")
    parser.add_argument("--commit", help="what to record where there is no git")
    return parser


def _about() -> dict[str, Any]:
    """Asked of another process: this one must not hold a GPU."""
    command = [sys.executable, "-m", "benchmarks.ours", "about"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"jax does not start: {(done.stderr.splitlines() or [''])[-1]}")
    return json.loads(done.stdout)


def _torch_version(python: str | None) -> dict[str, str]:
    if not python:
        return {}
    command = [python, "-c", "import torch; print(torch.__version__)"]
    return {"torch": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}


def _machine(about: dict[str, Any]) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = {"gpu": about["device"]} if about["backend"] == "gpu" else {}
    name = about["device"] if gpu else f"{cpu}, {cores} cores"
    return {"name": name, "cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "os": platform.system(), **gpu}


def _commit(out: Path) -> str:
    """The commit, "-dirty" when files differ from it, results excepted."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        results = os.path.relpath(out.absolute(), ROOT)
        excepted = [] if results.startswith("..") else [f":!{results}"]
        dirty = git("status", "--porcelain", "--", ".", *excepted)
        return git("rev-parse", "--short=10", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
