"""The rows of whole commands: what `train.py` adds to its steps, how soon it starts, and `sample.py`."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import Settings, environment, our_worker, run_command, scratch_folder, seconds_per_step
from benchmarks.pipe import ROOT, WorkerError
from benchmarks.report import Measurement


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
    with scratch_folder() as scratch, our_worker() as worker:
        caches, workdir = scratch / "caches", scratch / "run"
        about = worker.ask("setup", size=size, batch=batch, latent=256, maps=settings.maps)  # as configs/sngan64.py
        seconds = seconds_per_step(worker)
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
            run_command("train.py", *arguments, caches=caches)
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


def first_step(settings: Settings, *, size: int = 64) -> Measurement:
    """Seconds from the start of train.py to the first line of metrics.jsonl, all caches warm, on the CPU.

    Imports, data, compiled programs from the cache, weights and the first picture are in it, and one step.
    """
    seconds = []
    with scratch_folder() as scratch:
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


def sampling(settings: Settings, *, size: int = 128, batch: int = 64) -> Measurement:
    """Seconds of the whole sample.py command over the slower of computing alone and encoding alone on all cores.

    The command's start, imports, restoring and compiled programs from the cache are in its time. Computing and encoding
    alone are timed on a quarter of the images before the command and a quarter after, and scaled to all of them. The
    notes give the ratio without the start, too, taking the time of a command for one batch from both.
    """
    ratios, full, alone, starts, parts = [], [], [], [], []
    with scratch_folder() as scratch:
        caches, workdir = scratch / "caches", scratch / "run"
        arguments = [f"--config.gen_features={settings.maps}", "--config.dis_features=8", "--config.num_steps=1"]
        arguments += ["--config.data.source=phantom", "--config.data.num_phantoms=16", f"--config.image_size={size}"]
        settings.say("  making a generator")
        run_command("train.py", "--config=configs/sngan128.py", f"--workdir={workdir}", *arguments, caches=caches)

        def command(images: int) -> float:
            out = scratch / "out"
            try:
                return run_command(
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
