"""The rows: what is measured, and what is asked of it.

A speed is a ratio of two things measured in turns in one run, for machines are noisy and differ: each round asks one
side, then the other, in alternating order, and gives one ratio. What counts is the median of the ratios.
"""

import dataclasses
import functools
from collections.abc import Callable

from benchmarks.commands import command_overhead, first_step, sampling
from benchmarks.evaluation import features_against_torch, metrics_against_piqa, seconds_of_features
from benchmarks.measuring import Settings
from benchmarks.report import Bounds, Measurement
from benchmarks.steps import (
    cost_of_augmentation,
    cost_of_health_checks,
    peak_memory_against_torch,
    projected_steps_against_torch,
    share_of_matmul_rate,
    steps_against_torch,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim."""

    title: str
    bounds: Bounds
    measure: Callable[[Settings], Measurement]
    needs_gpu: bool = False


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
