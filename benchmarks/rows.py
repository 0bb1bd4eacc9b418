"""The rows: what is measured, against what, and how.

A speed is a ratio of two things measured in turns in one run, for machines are noisy and differ: each round asks one
side, then the other, in alternating order, and gives one ratio. What counts is the median of the ratios.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import step_flops
from benchmarks.pipe import ROOT, Worker, WorkerError
from benchmarks.report import Bounds, Measurement
from configs import default
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


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim."""

    title: str
    bounds: Bounds
    measure: Callable[[Settings], Measurement]
    needs_gpu: bool = False


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


def _torch(settings: Settings, module: str = "torch_step") -> Worker:
    return Worker([settings.torch_python, "-m", f"benchmarks.{module}"], environment())


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="medgan_jax_benchmark_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(script: str, *arguments: str, caches: Path) -> float:
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


def _seconds_per_step(worker: Worker) -> float:
    """Warms up, and measures the speed roughly."""
    worker.ask("run", steps=3)  # the first ones allocate
    return worker.ask("run", steps=2)["seconds"] / 2


def _in_turns(
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


# Rows 1 and 2, and on a GPU: one step against the peer's.


def steps_against_torch(
    settings: Settings,
    *,
    size: int,
    batch: int,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
) -> Measurement:
    """Images a second of ours over those of PyTorch; float32 or bfloat16 (there: autocast)."""
    shape = {"size": size, "batch": batch, "maps": settings.maps, "latent": 100}
    options = {"amp": dtype == "bfloat16", "compiled": compiled, "device": device}
    return _against_torch(settings, "torch_step", {"dtype": dtype, **shape}, {**options, **shape}, cpu=device == "cpu")


def projected_steps_against_torch(settings: Settings, *, size: int, batch: int, device: str = "cpu") -> Measurement:
    """The same of `small64` and larger: FastGAN and a projected discriminator, at a quarter as many maps."""
    shape = {"size": size, "batch": batch, "maps": settings.maps // 4, "latent": 128}
    theirs = {"device": device, **shape}
    return _against_torch(settings, "torch_projected", {"arch": "fastgan", **shape}, theirs, cpu=device == "cpu")


def _against_torch(
    settings: Settings, peer: str, ours: dict[str, Any], theirs: dict[str, Any], *, cpu: bool
) -> Measurement:
    """Images a second of steps; `ours` and `theirs` are what each side is set up with."""
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(our_worker(cpu=cpu))}
        about, versions = workers["ours"].ask("setup", **ours), {}
        if settings.torch_python:
            workers["peer"] = stack.enter_context(_torch(settings, peer))
            versions = workers["peer"].ask("setup", **theirs)
        seconds = max(map(_seconds_per_step, workers.values()))
        steps = max(1, min(256, round(settings.turn_seconds / seconds)))

        def rate(worker: Worker) -> float:
            return steps * ours["batch"] / worker.ask("run", steps=steps)["seconds"]

        sides = {name: functools.partial(rate, worker) for name, worker in workers.items()}
        rates = _in_turns(settings, sides, rounds=settings.rounds, unit="images/s")
    return Measurement(
        value=[a / b for a, b in zip(rates["ours"], rates["peer"], strict=False)],
        **rates,
        unit="images/s",
        notes={"steps_a_turn": steps, "device": about["device"], **versions},
        problem="" if settings.torch_python else PEER_MISSING,
    )


# Row 3: what the training command adds to the bare step.


def command_overhead(
    settings: Settings, *, size: int = 64, batch: int = 16, segment_seconds: float = 12
) -> Measurement:
    """Share of the time that `train.py` spends on all but steps, in its steady state, in percent.

    The command runs in segments, each going on where the last one stopped, between turns of the bare step on the same
    config; a segment's time per step is compared with the mean of the two turns around it. Start-up and the end are
    left out: a segment's time runs from its first line of metrics.jsonl to its last one, and follows from
    `images_per_s`, which counts from line to line whatever falls between.

    At the default intervals, a picture and a checkpoint every 500 steps, a segment on a CPU would take minutes, and the
    machine would have changed before the bare step's next turn. So segments are short and stop more often, and the two
    are told apart: p, the time per step of the lines without a stop before them, whatever else falls between, and s,
    the time above p per step of a line after a stop. The result is (p + s / 500) / bare - 1, for each segment by
    itself; its median is not the ratio of the medians, which the notes give too. Lines are logged more often
    than the default 50 steps, which is left in.
    """
    overrides = [f"--config.gen_features={settings.maps}", f"--config.dis_features={settings.maps}"]
    overrides += [f"--config.image_size={size}", f"--config.batch_size={batch}", "--config.data.source=phantom"]
    overhead, bare, command, stops = [], [], [], []
    with _scratch() as scratch, our_worker() as worker:
        caches, workdir = scratch / "caches", scratch / "run"
        about = worker.ask("setup", size=size, batch=batch, latent=256, maps=settings.maps)  # as configs/sngan64.py
        seconds = _seconds_per_step(worker)
        segment, log, stop = segment_intervals(segment_seconds / seconds)
        overrides += [f"--config.log_every_steps={log}"]
        overrides += [f"--config.{name}_every_steps={stop}" for name in ("sample", "checkpoint")]
        overrides += [
            "--config.monitor_every_steps=0"
        ]  # a row of its own; a segment's first health check is part of the start

        def bare_turn() -> float:
            return worker.ask("run", steps=segment)["seconds"] / segment

        before = bare_turn()
        for i in range(settings.segments):
            steps = f"--config.num_steps={(i + 1) * segment}"
            arguments = ("--config=configs/sngan64.py", f"--workdir={workdir}", steps, *overrides)
            _command("train.py", *arguments, caches=caches)
            after = bare_turn()
            lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
            lines = [line for line in lines if line["step"] > i * segment]
            plain, stopping = plain_and_stop(lines, batch=batch, stop=stop)
            bare.append(statistics.mean((before, after)))
            command.append(plain + stopping / 500)
            stops.append(stopping)
            overhead.append(100 * (command[-1] / bare[-1] - 1))
            before = after
            settings.say(
                f"  segment {i + 1} of {settings.segments}: {overhead[-1]:+.2f} %, "
                f"step {1000 * bare[-1]:.4g} ms bare, {1000 * plain:.4g} ms in the command, a stop {stopping:.3f} s"
            )
    return Measurement(
        value=overhead,
        ours=[1000 * x for x in command],
        peer=[1000 * x for x in bare],
        unit="ms a step",
        notes={
            "device": about["device"],
            "segment_steps": segment,
            "log_every": log,
            "stop_every": stop,
            "stop_seconds": round(statistics.median(stops), 4),
            "percent_by_medians": round(100 * (statistics.median(command) / statistics.median(bare) - 1), 2),
        },
    )


def segment_intervals(steps: float) -> tuple[int, int, int]:
    """For segments of about `steps` steps: their length, and the intervals of logging and of stops, 50 and 500 at most.

    A segment has eight lines or more, and a stop or more between the first and the last of them.
    """
    log = int(min(50, max(1, steps // 8)))
    stop = 500 if log == 50 and steps >= 1000 else 4 * log
    return max(2, int(steps) // stop) * stop, log, stop


def plain_and_stop(lines: list[dict[str, Any]], *, batch: int, stop: int) -> tuple[float, float]:
    """From consecutive lines of metrics.jsonl: seconds of a step without stops, and what a stop adds.

    The first line is left out, as the first call after a start is. A stop's picture and checkpoint come after its own
    line, so that their time is in the line after.
    """
    windows = [
        (b["step"] - a["step"], (b["step"] - a["step"]) * batch / b["images_per_s"], a["step"] % stop == 0)
        for a, b in zip(lines, lines[1:], strict=False)
    ]
    undisturbed = [(seconds, steps) for steps, seconds, stopped in windows if not stopped]
    plain = sum(seconds for seconds, _ in undisturbed) / sum(steps for _, steps in undisturbed)
    return plain, statistics.mean(seconds - steps * plain for steps, seconds, stopped in windows if stopped)


def cost_of_health_checks(settings: Settings, *, size: int = 64, batch: int = 16) -> Measurement:
    """A health check against the 100 steps between two of them, in percent: what alarms cost."""
    every = default.get_config().monitor_every_steps
    with our_worker() as worker:
        about = worker.ask("setup", size=size, batch=batch, maps=settings.maps)
        steps = max(1, round(settings.turn_seconds / _seconds_per_step(worker)))
        worker.ask("health_check")
        checks, bare = [], []
        for _ in range(settings.rounds):
            bare.append(worker.ask("run", steps=steps)["seconds"] / steps)
            checks.append(statistics.mean(worker.ask("health_check")["seconds"] for _ in range(3)))
    return Measurement(
        value=[100 * a / (every * b) for a, b in zip(checks, bare, strict=True)],
        ours=[1000 * x for x in checks],
        peer=[1000 * x for x in bare],
        unit="ms: a health check, a step",
        notes={"device": about["device"], "monitor_every_steps": every},
    )


def cost_of_augmentation(settings: Settings, *, size: int = 64, batch: int = 16) -> Measurement:
    """The time of a step with every kind of augmentation over that of the plain step."""
    options = {"size": size, "batch": batch, "maps": settings.maps}
    with our_worker() as augmented, our_worker() as plain:
        about = plain.ask("setup", **options)
        augmented.ask("setup", augmented=True, **options)
        steps = max(1, round(settings.turn_seconds / max(map(_seconds_per_step, (plain, augmented)))))

        def milliseconds(worker: Worker) -> float:
            return 1000 * worker.ask("run", steps=steps)["seconds"] / steps

        sides = {"ours": functools.partial(milliseconds, augmented), "peer": functools.partial(milliseconds, plain)}
        samples = _in_turns(settings, sides, rounds=settings.rounds, unit="ms")
    return Measurement(
        value=[a / b for a, b in zip(samples["ours"], samples["peer"], strict=True)],
        **samples,
        unit="ms a step",
        notes={"device": about["device"], "steps_a_turn": steps},
    )


# Row 4: the start.


def first_step(settings: Settings, *, size: int = 64) -> Measurement:
    """Seconds from the start of train.py to the first line of metrics.jsonl, all caches warm, on the CPU.

    Imports, data, compiled programs from the cache, weights and the first picture are in it, and one step.
    """
    seconds = []
    with _scratch() as scratch:
        variables = environment(cpu=True, caches=str(scratch / "caches"))
        for i in range(settings.slow_rounds + 1):
            workdir = scratch / f"run_{i}"
            command = [sys.executable, "train.py", "--config=configs/sngan64.py", f"--workdir={workdir}"]
            command += ["--config.data.source=phantom", "--config.log_every_steps=1", f"--config.image_size={size}"]
            command += [f"--config.gen_features={settings.maps}", f"--config.dis_features={settings.maps}"]
            command += [f"--config.num_steps={1000 if i else 1}"]  # the first run fills the caches, to its end
            with open(scratch / "stderr", "w+") as stderr:
                start = time.perf_counter()
                process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=stderr, stderr=stderr)
                try:
                    while process.poll() is None and not (i and _has_line(workdir / "metrics.jsonl")):
                        time.sleep(0.005)
                    elapsed = time.perf_counter() - start
                finally:
                    process.kill()  # it is a scratch training: nothing is to be saved
                    process.wait()
                if not _has_line(workdir / "metrics.jsonl"):
                    stderr.seek(0)
                    raise WorkerError(f"train.py: {(stderr.read().splitlines() or [''])[-1]}")
            shutil.rmtree(workdir)
            settings.say(f"  start {i} of {settings.slow_rounds}: {elapsed:.2f} s" + ("" if i else ", caches cold"))
            if i:
                seconds.append(elapsed)
            else:
                cold = elapsed
    notes = {"cold_caches_one_step_and_end_seconds": round(cold, 2)}
    return Measurement(value=seconds, ours=seconds, peer=[], unit="s", notes=notes)


def _has_line(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


# Row 5: memory.


def peak_memory_against_torch(settings: Settings, *, size: int = 128, batch: int = 16) -> Measurement:
    """Most memory that a process has had resident, over PyTorch's: imports, compiling and three steps, nothing else.

    Ours compiles, with no program from a cache: that is the user's first run.
    """

    def mebibytes(start: Callable[[], Worker]) -> float:
        with start() as worker:
            worker.ask("setup", size=size, batch=batch, maps=settings.maps, latent=100)
            worker.ask("run", steps=3)
            return worker.ask("memory")["bytes"] / 2**20

    sides = {"ours": lambda: mebibytes(lambda: our_worker(cpu=True))}
    if settings.torch_python:
        sides["peer"] = lambda: mebibytes(lambda: _torch(settings))
    peaks = _in_turns(settings, sides, rounds=max(1, settings.slow_rounds // 2), unit="MiB")
    return Measurement(
        value=[a / b for a, b in zip(peaks["ours"], peaks["peer"], strict=False)],
        **peaks,
        unit="MiB",
        problem="" if settings.torch_python else PEER_MISSING,
    )


# On a GPU: how much of it is used.


def share_of_matmul_rate(
    settings: Settings, *, size: int = 128, batch: int = 256, matrix: int = 8192, repeats: int = 50
) -> Measurement:
    """Nominal FLOP/s of the bfloat16 step over those of one large bfloat16 matrix product, in percent."""
    flops = step_flops(size, batch, maps=settings.maps)
    product = {"size": matrix, "repeats": repeats, "dtype": "bfloat16"}
    ours, rate = [], []
    with our_worker() as worker:
        about = worker.ask("setup", size=size, batch=batch, maps=settings.maps, dtype="bfloat16")
        steps = max(1, min(256, round(settings.turn_seconds / _seconds_per_step(worker))))
        for i in range(settings.rounds):
            ours.append(flops * steps / worker.ask("run", steps=steps)["seconds"] / 1e12)
            rate.append(worker.ask("matmul", **product)["flops"] / 1e12)
            settings.say(f"  round {i + 1} of {settings.rounds}: step {ours[-1]:.4g}, product {rate[-1]:.4g} TFLOP/s")
    notes = {"device": about["device"], "flop_a_step": flops, "matrix": matrix}
    if settings.torch_python:
        with _torch(settings) as worker:
            worker.ask("setup", size=16, batch=2, maps=2, device="cuda" if about["backend"] == "gpu" else "cpu")
            torch_rate = worker.ask("matmul", **product)["flops"]
        notes["torch_matmul_tflops"] = round(torch_rate / 1e12, 4)
    value = [100 * a / b for a, b in zip(ours, rate, strict=True)]
    return Measurement(value=value, ours=ours, peer=rate, unit="TFLOP/s", notes=notes)


# The last row: sampling.


def sampling(settings: Settings, *, size: int = 128, batch: int = 64) -> Measurement:
    """Seconds of the whole sample.py command over the slower of computing alone and encoding alone on all cores.

    The command's start, imports, restoring and compiled programs from the cache are in its time. Computing and encoding
    alone are timed on a quarter of the images before the command and a quarter after, and scaled to all of them. The
    notes give the ratio without the start, too, taking the time of a command for one batch from both.
    """
    ratios, full, alone, starts, parts = [], [], [], [], []
    with _scratch() as scratch:
        caches, workdir = scratch / "caches", scratch / "run"
        arguments = [f"--config.gen_features={settings.maps}", "--config.dis_features=8", "--config.num_steps=1"]
        arguments += ["--config.data.source=phantom", "--config.data.num_phantoms=16", f"--config.image_size={size}"]
        settings.say("  making a generator")
        _command("train.py", "--config=configs/sngan128.py", f"--workdir={workdir}", *arguments, caches=caches)

        def command(images: int) -> float:
            out = scratch / "out"
            try:
                return _command(
                    "sample.py",
                    f"--checkpoint={workdir}",
                    f"--out={out}",
                    f"--num_images={images}",
                    f"--batch_size={batch}",
                    caches=caches,
                )
            finally:
                shutil.rmtree(out, ignore_errors=True)

        with our_worker(caches=str(caches)) as worker:
            about = worker.ask("setup_sampling", checkpoint=str(workdir), batch=batch)
            worker.ask("compute", images=batch)
            command(batch)  # fills the caches
            quarter = max(1, settings.images // 4)
            rounds = max(1, settings.slow_rounds // 2)

            def quarters() -> tuple[float, float]:
                computing = worker.ask("compute", images=quarter)["seconds"]
                return computing, worker.ask("encode")["seconds"]

            for i in range(rounds):
                before = quarters()
                full.append(command(settings.images))
                starts.append(command(batch))
                after = quarters()
                computing, encoding = (
                    (a + b) / 2 * settings.images / quarter for a, b in zip(before, after, strict=True)
                )
                parts.append((computing, encoding))
                alone.append(max(parts[-1]))
                ratios.append(full[-1] / alone[-1])
                settings.say(
                    f"  round {i + 1} of {rounds}: {full[-1]:.1f} s, of it start {starts[-1]:.1f} s; "
                    f"computing alone {computing:.1f} s, encoding alone {encoding:.1f} s"
                )
    steady = [(f - s) / (a * (1 - batch / settings.images)) for f, s, a in zip(full, starts, alone, strict=True)]
    notes = {
        "device": about["device"],
        "images": settings.images,
        "batch": batch,
        "start_seconds": round(statistics.median(starts), 2),
        "computing_alone_seconds": round(statistics.median(p[0] for p in parts), 2),
        "encoding_alone_seconds": round(statistics.median(p[1] for p in parts), 2),
        "ratio_without_start": round(statistics.median(steady), 3),
    }
    return Measurement(value=ratios, ours=full, peer=alone, unit="s", notes=notes)


# The paired metrics.


def metrics_against_piqa(settings: Settings, *, size: int = 256, pairs: int = 64) -> Measurement:
    """Seconds of PIQA over ours, for PSNR, SSIM, MS-GMSD, MDSI and HaarPSI of random pairs on the CPU.

    Ours are scored as evaluate.py scores them, from uint8 and a few pairs at a time; PIQA is given all as floats.
    """
    workers, notes = {}, {}
    with ExitStack() as stack:
        workers["ours"] = stack.enter_context(our_worker(cpu=True))
        if settings.torch_python:
            command = [settings.torch_python, "-m", "benchmarks.piqa_metrics"]
            workers["peer"] = stack.enter_context(Worker(command, environment()))
        for name, worker in workers.items():
            about = worker.ask("setup_metrics", size=size, pairs=pairs)
            notes |= about if name == "peer" else {}
            worker.ask("score")  # compiles, and allocates

        def seconds(name: str) -> float:
            answer = workers[name].ask("score")
            notes.update({f"{name}_{key}": round(value, 3) for key, value in answer["each"].items()})
            return answer["seconds"]

        sides = {name: functools.partial(seconds, name) for name in workers}
        samples = _in_turns(settings, sides, rounds=settings.slow_rounds, unit="s")
    return Measurement(
        value=[b / a for a, b in zip(samples["ours"], samples["peer"], strict=False)],
        **samples,
        unit="s",
        notes=notes,
        problem="" if settings.torch_python else PEER_MISSING,
    )


# The features of evaluation.


def features_against_torch(settings: Settings, *, backward: bool, size: int = 128, batch: int = 16) -> Measurement:
    """Images a second of ours over those of PyTorch: EfficientNet-Lite0's logits, with their gradient to the images."""
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(our_worker(cpu=True))}
        if settings.torch_python:
            workers["peer"] = stack.enter_context(_torch(settings, "torch_features"))
        notes = [worker.ask("setup_features", size=size, batch=batch) for worker in workers.values()]

        def seconds(worker: Worker, steps: int) -> float:
            return worker.ask("run_features", steps=steps, backward=backward)["seconds"] / steps

        for worker in workers.values():
            seconds(worker, 3)  # compiles, and allocates
        steps = max(1, round(settings.turn_seconds / max(seconds(worker, 2) for worker in workers.values())))
        sides = {name: lambda worker=worker: batch / seconds(worker, steps) for name, worker in workers.items()}
        rates = _in_turns(settings, sides, rounds=settings.rounds, unit="images/s")
    return Measurement(
        value=[a / b for a, b in zip(rates["ours"], rates["peer"], strict=False)],
        **rates,
        unit="images/s",
        notes={"steps_a_turn": steps, **(notes[1] if len(notes) > 1 else {})},
        problem="" if settings.torch_python else PEER_MISSING,
    )


def seconds_of_features(settings: Settings, *, size: int = 64, images: int = 150) -> Measurement:
    """Seconds of EfficientNet-Lite1's features, after compilation: nearly all that KID costs during training."""
    with our_worker(cpu=True) as worker:
        worker.ask("lite1_features", size=size, images=images)  # compiles
        seconds = [
            worker.ask("lite1_features", size=size, images=images)["seconds"] for _ in range(settings.slow_rounds)
        ]
    return Measurement(value=seconds, ours=seconds, peer=[], unit="s")


def _more(must: float, aim: float, unit: str = "x") -> Bounds:
    return Bounds(must, aim, True, unit)


def _less(must: float, aim: float, unit: str = "x") -> Bounds:
    return Bounds(must, aim, False, unit)


_amp = functools.partial(steps_against_torch, size=128, batch=64, device="cuda", dtype="bfloat16")
ROWS = {
    "step64": Row(
        "SNGAN-64, batch 16, CPU: images/s against eager PyTorch",
        _more(1.2, 1.8),
        functools.partial(steps_against_torch, size=64, batch=16),
    ),
    "step128": Row(
        "SNGAN-128, batch 16, CPU: images/s against eager PyTorch",
        _more(1.2, 1.8),
        functools.partial(steps_against_torch, size=128, batch=16),
    ),
    "projected64": Row(
        "FastGAN and projected discriminator, 64 px, batch 16, CPU: images/s against eager PyTorch",
        _more(1.3, 2),
        functools.partial(projected_steps_against_torch, size=64, batch=16),
    ),
    "projected128": Row(
        "FastGAN and projected discriminator, 128 px, batch 16, CPU: images/s against eager PyTorch",
        _more(1.3, 2),
        functools.partial(projected_steps_against_torch, size=128, batch=16),
    ),
    "overhead": Row(
        "SNGAN-64, batch 16: what the training command adds to the bare step, median of paired differences",
        _less(5, 2, "%"),
        command_overhead,
    ),
    "alarms": Row(
        "SNGAN-64, batch 16: what the health checks behind the alarms add to the steps",
        _less(3, 1.5, "%"),
        cost_of_health_checks,
    ),
    "augmented": Row(
        "SNGAN-64, batch 16: a step with every kind of augmentation, against the plain one",
        _less(1.15, 1.05),
        cost_of_augmentation,
    ),
    "first_step": Row("SNGAN-64, CPU: first step after `python train.py`, caches warm", _less(12, 6, "s"), first_step),
    "memory": Row("SNGAN-128, batch 16, CPU: peak memory against PyTorch's", _less(1.5, 1), peak_memory_against_torch),
    "sampling": Row(
        "Sampling at 128 px, PNG files included, against the slower of computing and encoding alone",
        _less(1.3, 1.1),
        sampling,
    ),
    "metrics": Row(
        "Five paired metrics, 64 pairs of 256 px, CPU: PIQA's time over ours", _more(3, 4), metrics_against_piqa
    ),
    "features_forward": Row(
        "EfficientNet-Lite0, batch 16 of 128 px, CPU: images/s against eager PyTorch",
        _more(1, 1.5),
        functools.partial(features_against_torch, backward=False),
    ),
    "features_backward": Row(
        "EfficientNet-Lite0, batch 16 of 128 px, CPU: with the gradient to the images, images/s against eager PyTorch",
        _more(1.3, 1.8),
        functools.partial(features_against_torch, backward=True),
    ),
    "features_150": Row(
        "EfficientNet-Lite1's features of 150 images of 64 px, CPU, after compilation",
        _less(6, 4, "s"),
        seconds_of_features,
    ),
    "gpu64": Row(
        "SNGAN-64, batch 16, GPU: images/s against eager PyTorch, float32",
        _more(4, 8),
        functools.partial(steps_against_torch, size=64, batch=16, device="cuda"),
        needs_gpu=True,
    ),
    "gpu_projected64": Row(
        "FastGAN and projected discriminator, 64 px, batch 16, GPU: images/s against eager PyTorch, float32",
        _more(2, 4),
        functools.partial(projected_steps_against_torch, size=64, batch=16, device="cuda"),
        needs_gpu=True,
    ),
    "gpu_projected128": Row(
        "FastGAN and projected discriminator, 128 px, batch 16, GPU: images/s against eager PyTorch, float32",
        _more(2, 4),
        functools.partial(projected_steps_against_torch, size=128, batch=16, device="cuda"),
        needs_gpu=True,
    ),
    "gpu128": Row(
        "SNGAN-128, batch 64, GPU, bfloat16: images/s against PyTorch's autocast", _more(1.5, 2.5), _amp, needs_gpu=True
    ),
    "gpu128_compile": Row(
        "SNGAN-128, batch 64, GPU, bfloat16: images/s against PyTorch's autocast and torch.compile",
        _more(1.5, 2.5),
        functools.partial(_amp, compiled=True),
        needs_gpu=True,
    ),
    "gpu_share": Row(
        "SNGAN-128, batch 256, GPU: share of the measured bfloat16 matrix rate",
        _more(25, 45, "%"),
        share_of_matmul_rate,
        needs_gpu=True,
    ),
}
