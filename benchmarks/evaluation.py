"""The rows of evaluation: the paired metrics, and the features of distribution measures."""

import functools
from contextlib import ExitStack

from benchmarks.measuring import PEER_MISSING, Settings, environment, in_turns, our_worker, torch_worker
from benchmarks.pipe import Worker
from benchmarks.report import Measurement


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
        samples = in_turns(settings, sides, rounds=settings.slow_rounds, unit="s")
    return Measurement(
        value=[b / a for a, b in zip(samples["ours"], samples["peer"], strict=False)],
        **samples,
        unit="s",
        notes=notes,
        problem="" if settings.torch_python else PEER_MISSING,
    )


def features_against_torch(settings: Settings, *, backward: bool, size: int = 128, batch: int = 16) -> Measurement:
    """Images a second of ours over those of PyTorch: EfficientNet-Lite0's logits, with their gradient to the images."""
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(our_worker(cpu=True))}
        if settings.torch_python:
            workers["peer"] = stack.enter_context(torch_worker(settings, "torch_features"))
        notes = [worker.ask("setup_features", size=size, batch=batch) for worker in workers.values()]

        def seconds(worker: Worker, steps: int) -> float:
            return worker.ask("run_features", steps=steps, backward=backward)["seconds"] / steps

        for worker in workers.values():
            seconds(worker, 3)  # compiles, and allocates
        steps = max(1, round(settings.turn_seconds / max(seconds(worker, 2) for worker in workers.values())))
        sides = {name: lambda worker=worker: batch / seconds(worker, steps) for name, worker in workers.items()}
        rates = in_turns(settings, sides, rounds=settings.rounds, unit="images/s")
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
