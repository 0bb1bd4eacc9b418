"""The rows of one training step: its speed, what is added to it, its memory, and how much of a GPU it uses."""

import functools
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.arithmetic import step_flops
from benchmarks.measuring import PEER_MISSING, Settings, in_turns, our_worker, seconds_per_step, torch_worker
from benchmarks.pipe import Worker
from benchmarks.report import Measurement
from configs import default


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
            workers["peer"] = stack.enter_context(torch_worker(settings, peer))
            versions = workers["peer"].ask("setup", **theirs)
        seconds = max(map(seconds_per_step, workers.values()))
        steps = max(1, min(256, round(settings.turn_seconds / seconds)))

        def rate(worker: Worker) -> float:
            return steps * ours["batch"] / worker.ask("run", steps=steps)["seconds"]

        sides = {name: functools.partial(rate, worker) for name, worker in workers.items()}
        rates = in_turns(settings, sides, rounds=settings.rounds, unit="images/s")
    return Measurement(
        value=[a / b for a, b in zip(rates["ours"], rates["peer"], strict=False)],
        **rates,
        unit="images/s",
        notes={"steps_a_turn": steps, "device": about["device"], **versions},
        problem="" if settings.torch_python else PEER_MISSING,
    )


def cost_of_health_checks(settings: Settings, *, size: int = 64, batch: int = 16) -> Measurement:
    """A health check against the 100 steps between two of them, in percent: what alarms cost."""
    every = default.get_config().monitor_every_steps
    with our_worker() as worker:
        about = worker.ask("setup", size=size, batch=batch, maps=settings.maps)
        steps = max(1, round(settings.turn_seconds / seconds_per_step(worker)))
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
        steps = max(1, round(settings.turn_seconds / max(map(seconds_per_step, (plain, augmented)))))

        def milliseconds(worker: Worker) -> float:
            return 1000 * worker.ask("run", steps=steps)["seconds"] / steps

        sides = {"ours": functools.partial(milliseconds, augmented), "peer": functools.partial(milliseconds, plain)}
        samples = in_turns(settings, sides, rounds=settings.rounds, unit="ms")
    return Measurement(
        value=[a / b for a, b in zip(samples["ours"], samples["peer"], strict=True)],
        **samples,
        unit="ms a step",
        notes={"device": about["device"], "steps_a_turn": steps},
    )


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
        sides["peer"] = lambda: mebibytes(lambda: torch_worker(settings))
    peaks = in_turns(settings, sides, rounds=max(1, settings.slow_rounds // 2), unit="MiB")
    return Measurement(
        value=[a / b for a, b in zip(peaks["ours"], peaks["peer"], strict=False)],
        **peaks,
        unit="MiB",
        problem="" if settings.torch_python else PEER_MISSING,
    )


def share_of_matmul_rate(
    settings: Settings, *, size: int = 128, batch: int = 256, matrix: int = 8192, repeats: int = 50
) -> Measurement:
    """Nominal FLOP/s of the bfloat16 step over those of one large bfloat16 matrix product, in percent."""
    flops = step_flops(size, batch, maps=settings.maps)
    product = {"size": matrix, "repeats": repeats, "dtype": "bfloat16"}
    ours, rate = [], []
    with our_worker() as worker:
        about = worker.ask("setup", size=size, batch=batch, maps=settings.maps, dtype="bfloat16")
        steps = max(1, min(256, round(settings.turn_seconds / seconds_per_step(worker))))
        for i in range(settings.rounds):
            ours.append(flops * steps / worker.ask("run", steps=steps)["seconds"] / 1e12)
            rate.append(worker.ask("matmul", **product)["flops"] / 1e12)
            settings.say(f"  round {i + 1} of {settings.rounds}: step {ours[-1]:.4g}, product {rate[-1]:.4g} TFLOP/s")
    notes = {"device": about["device"], "flop_a_step": flops, "matrix": matrix}
    if settings.torch_python:
        with torch_worker(settings) as worker:
            worker.ask("setup", size=16, batch=2, maps=2, device="cuda" if about["backend"] == "gpu" else "cpu")
            torch_rate = worker.ask("matmul", **product)["flops"]
        notes["torch_matmul_tflops"] = round(torch_rate / 1e12, 4)
    value = [100 * a / b for a, b in zip(ours, rate, strict=True)]
    return Measurement(value=value, ours=ours, peer=rate, unit="TFLOP/s", notes=notes)
