"""How the cost of a step grows with resolution, batch and feature maps: the table of docs/scaling.md.

python -m benchmarks.scaling

Every point is a process of its own, which runs nothing but the step. Prints Markdown.
"""

import argparse
import statistics
import sys

from benchmarks.arithmetic import step_flops
from benchmarks.measuring import environment
from benchmarks.pipe import Worker, WorkerError
from medgan_jax.errors import UserError, reported

# size, batch, maps: one of them changes at a time, from the middle of its row.
POINTS = (
    *((16, 16, 64), (32, 16, 64), (64, 16, 64), (128, 16, 64), (256, 16, 64)),
    *((64, 4, 64), (64, 8, 64), (64, 32, 64), (64, 64, 64)),
    *((64, 16, 16), (64, 16, 32), (64, 16, 128)),
)


def measure(size: int, batch: int, maps: int, *, dtype: str, turn_seconds: float) -> dict[str, float]:
    """Seconds of a step, the median of five turns, and the most bytes resident, of an SNGAN."""
    with Worker([sys.executable, "-m", "benchmarks.ours"], environment()) as worker:
        worker.ask("setup", size=size, batch=batch, maps=maps, dtype=dtype)
        worker.ask("run", steps=2)
        first = worker.ask("run", steps=1)["seconds"]
        steps = max(1, min(256, round(turn_seconds / first)))
        seconds = statistics.median(worker.ask("run", steps=steps)["seconds"] / steps for _ in range(5))
        return {"seconds": seconds, "bytes": worker.ask("memory")["bytes"]}


def main(arguments: list[str]) -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--turn_seconds", type=float, default=3, help="how long each of five turns takes; 3 by default")
    options = parser.parse_args(arguments)
    if not options.turn_seconds > 0:
        raise UserError(f"--turn_seconds={options.turn_seconds}: must be above 0")
    print("| px | batch | maps | nominal GFLOP a step | s a step | images/s | nominal GFLOP/s | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for size, batch, maps in POINTS:
        try:
            result = measure(size, batch, maps, dtype=options.dtype, turn_seconds=options.turn_seconds)
        except WorkerError as error:
            raise UserError(f"{size} px, batch {batch}, {maps} maps: {error}") from error
        flops, seconds = step_flops(size, batch, maps=maps) / 1e9, result["seconds"]
        cells = (
            size,
            batch,
            maps,
            f"{flops:.4g}",
            f"{seconds:.3g}",
            f"{batch / seconds:.3g}",
            f"{flops / seconds:.3g}",
        )
        print("| " + " | ".join(map(str, (*cells, round(result["bytes"] / 2**20)))) + " |", flush=True)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
