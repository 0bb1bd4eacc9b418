"""Where the time of one training step goes: by kind of work, by layer, by operation, beside what it could not beat.

python -m benchmarks.profile --size=64 --batch=16

Prints Markdown. Times are those of XLA's operations, summed over the device's threads and averaged over the steps that
were traced. A fused operation is booked where its root comes from, so neighbours leak into each other a little.
"""

import argparse
import collections
import dataclasses
import functools
import gzip
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.arithmetic import layers
from benchmarks.ours import MAX_STEPS, Training, matmul_rate, training_config
from medgan_jax.cli import keep_freed_memory
from medgan_jax.errors import UserError, reported

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LAYER = re.compile(r"(Generator|Discriminator)\)*/((?:conv|norm)_\d+)")
_NETWORK = re.compile(r"(Generator|Discriminator)\)")
_MOVEMENT = {
    *("bitcast", "broadcast", "concatenate", "constant", "copy", "copy-done", "copy-start", "dynamic-slice"),
    *("dynamic-update-slice", "gather", "get-tuple-element", "iota", "pad", "parameter", "reshape", "reverse"),
    *("slice", "transpose", "tuple"),
}
_OUTSIDE = "outside the networks"
KINDS = ("matrix products", "data movement", "elementwise", "batch norm", "spectral norm", _OUTSIDE)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of a compiled program."""

    opcodes: frozenset[str]  # its own, and those of what it calls, all the way down
    source: str  # where it comes from: the path of transformations, modules and the primitive
    inside: frozenset[str]  # names of the instructions of what it calls

    @property
    def layer(self) -> str:
        """Such as Generator/conv_1; a network's activations; or what is outside: losses, Adam, random numbers."""
        if found := _LAYER.search(self.source):
            return "/".join(found.groups())
        found = _NETWORK.search(self.source)
        return f"{found[1]}/activations" if found else _OUTSIDE

    @property
    def direction(self) -> str:
        """Forward or backward."""
        return "backward" if "transpose(" in self.source else "forward"

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if "spectral_norm" in self.source:
            return "spectral norm"
        if "matmul" in self.opcodes:
            return "matrix products"
        if self.layer == _OUTSIDE:
            return _OUTSIDE
        if "/norm_" in self.layer:
            return "batch norm"
        return "data movement" if self.opcodes <= _MOVEMENT | {"fusion", "call"} else "elementwise"


def parse_program(text: str) -> dict[str, Operation]:
    """The operations of an optimised HLO module, `compiled.as_text()`, by name."""
    computation, computations, found = "", collections.defaultdict(list), {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            name, opcode = instruction.groups()
            target = _TARGET.search(line)
            if opcode in ("dot", "convolution") or (target and re.search("gemm|matmul|conv|dot", target[1].lower())):
                opcode = "matmul"
            source = _OP_NAME.search(line)
            found[name] = opcode, source[1] if source else "", _CALLED.findall(line)
            computations[computation].append(name)

    @functools.cache
    def inside(name: str) -> frozenset[str]:
        called = [inner for computation in found[name][2] for inner in computations[computation]]
        return frozenset(called).union(*map(inside, called))

    def operation(name: str) -> Operation:
        opcode, source, _ = found[name]
        return Operation(frozenset({opcode, *(found[inner][0] for inner in inside(name))}), source, inside(name))

    return {name: operation(name) for name in found}


def read_trace(folder: Path, module: str) -> collections.Counter[str]:
    """Microseconds by instruction name, of all runs of the program `module` in a profiler's trace."""
    (path,) = folder.rglob("perfetto_trace.json.gz")
    with gzip.open(path) as file:
        events = json.load(file)
    microseconds = collections.Counter()
    for event in events["traceEvents"] if isinstance(events, dict) else events:
        about = event.get("args", {})
        if "hlo_op" in about and about.get("hlo_module", module).startswith(module):
            microseconds[about["hlo_op"]] += event.get("dur", 0)
    return microseconds


def leaves(microseconds: Mapping[str, float], program: Mapping[str, Operation]) -> dict[str, float]:
    """Without the operations, such as loops, whose inner ones have times of their own."""
    return {
        name: time
        for name, time in microseconds.items()
        if name in program and not any(inner in microseconds for inner in program[name].inside)
    }


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def describe(times: Mapping[str, float], program: Mapping[str, Operation], top: int = 20) -> str:
    """Three Markdown tables from milliseconds by instruction name: by kind, by layer, and the longest ones."""
    total = sum(times.values())
    by_kind, by_layer = collections.Counter(), collections.Counter()
    for name, spent in times.items():
        operation = program[name]
        by_kind[operation.kind, operation.direction] += spent
        by_layer[operation.layer, operation.kind] += spent
    kinds = (
        (kind, *(f"{by_kind[kind, way]:.1f}" for way in ("forward", "backward")), f"{100 * whole / total:.1f} %")
        for kind in KINDS
        if (whole := by_kind[kind, "forward"] + by_kind[kind, "backward"])
    )
    names = sorted({layer for layer, _ in by_layer}, key=lambda name: (name == _OUTSIDE, name))
    rows = (
        (name, *(f"{by_layer[name, kind]:.1f}" for kind in KINDS), f"{sum(by_layer[name, kind] for kind in KINDS):.1f}")
        for name in names
    )
    longest = sorted(times.items(), key=lambda item: -item[1])[:top]
    operations = (
        (f"`{name}`", f"{spent:.2f}", program[name].kind, f"`{program[name].source}`") for name, spent in longest
    )
    return "\n\n".join(
        (
            _table(("ms a step", "forward", "backward", "share"), kinds),
            _table(("ms a step", *KINDS, "all"), rows),
            _table(("operation", "ms", "kind", "from"), operations),
        )
    )


def copy_rate(mebibytes: int = 256, repeats: int = 10) -> float:
    """Bytes a second, read and written, of an operation that only moves them."""

    @jax.jit
    def move(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, x: x + 1, x)

    x = jnp.zeros((mebibytes * 2**18,), jnp.float32)
    jax.block_until_ready(move(x))
    start = time.perf_counter()
    jax.block_until_ready(move(x))
    return 2 * x.nbytes * repeats / (time.perf_counter() - start)


def profile(*, steps: int = 5, matrix: int = 2048, **options: Any) -> str:
    """Traces some steps of the training that `options` describe, see `training_config`; Markdown.

    Raises:
      UserError: no step, too many, or impossible options.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise UserError(f"--steps={steps}: must be from 1 to {MAX_STEPS}")
    config = training_config(**options)
    training = Training(config)
    training.run(2)
    start = time.perf_counter()
    training.run(steps)
    seconds = (time.perf_counter() - start) / steps
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            training.run(steps)
        traced = read_trace(Path(folder), "jit_step")
    program = parse_program(training.program.as_text())
    times = {name: spent / steps / 1000 for name, spent in leaves(traced, program).items()}

    size, batch = config.image_size, config.batch_size
    every = layers(size, maps=config.gen_features, latent=config.latent_dim, channels=config.channels)
    flops, least = sum(layer.flops(batch) for layer in every), sum(layer.traffic(batch) for layer in every)
    analysis = training.program.cost_analysis() or {}
    moved = analysis.get("bytes accessed", 0)
    rate, bandwidth = matmul_rate(matrix, 40, config.dtype), copy_rate()
    bounds = [
        ("the step, not traced", "", "", f"{1000 * seconds:.1f}"),
        ("its operations, summed", "", "", f"{sum(times.values()):.1f}"),
        (
            "arithmetic, nominal",
            f"{flops / 1e9:.4g} GFLOP",
            f"{rate / 1e9:.4g} GFLOP/s, {config.dtype} matrix product",
            f"{1000 * flops / rate:.1f}",
        ),
    ]
    for what, size in (("bytes, XLA's count", moved), ("bytes, convolutions alone, at least", least)):
        bounds.append((what, f"{size / 1e9:.4g} GB", f"{bandwidth / 1e9:.4g} GB/s", f"{1000 * size / bandwidth:.1f}"))
    title = f"{config.arch}, {config.image_size} px, batch {batch}, {config.dtype}, {jax.devices()[0].device_kind}"
    return f"{title}\n\n{_table(('', 'amount', 'measured rate', 'ms'), bounds)}\n\n{describe(times, program)}"


def main(arguments: list[str]) -> None:
    """Prints the profile that the flags ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=64, help="pixels; 64 by default")
    parser.add_argument("--batch", type=int, default=16, help="images; 16 by default")
    parser.add_argument("--maps", type=int, default=64, help="feature maps; 64, the published networks, by default")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--arch", default="sngan", choices=("sngan", "dcgan"))
    parser.add_argument("--steps", type=int, default=5, help="how many to trace; 5 by default")
    keep_freed_memory()  # as `train.py` does
    print(profile(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
