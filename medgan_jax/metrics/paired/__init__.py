"""Paired metrics: one number for two images, as pure and jitted functions.

Images are floating, (N, H, W, 1 or 3), in [0, 1]; each function takes two batches and returns (N,): image i is compared
with image i alone. Generated images have no partner, so every figure must name the pairing, see
`medgan_jax.evaluation`.
"""

import dataclasses
from collections.abc import Callable

import jax

from medgan_jax.metrics.paired.haarpsi import haarpsi
from medgan_jax.metrics.paired.mdsi import mdsi
from medgan_jax.metrics.paired.ms_gmsd import ms_gmsd
from medgan_jax.metrics.paired.psnr import psnr
from medgan_jax.metrics.paired.ssim import ms_ssim, ssim

__all__ = ["METRICS", "PairedMetric", "haarpsi", "mdsi", "ms_gmsd", "ms_ssim", "psnr", "ssim"]


@dataclasses.dataclass(frozen=True)
class PairedMetric:
    """A metric, and what must be known to read its values."""

    function: Callable[..., jax.Array]
    title: str
    higher_is_better: bool
    identical: float  # what identical images get
    min_size: int  # px; below, the function raises ValueError
    unit: str = ""


METRICS = {
    "psnr": PairedMetric(psnr, "PSNR", True, float("inf"), 1, "dB"),
    "ssim": PairedMetric(ssim, "SSIM", True, 1, 11),
    "ms_ssim": PairedMetric(ms_ssim, "MS-SSIM", True, 1, 161),
    "ms_gmsd": PairedMetric(ms_gmsd, "MS-GMSD", False, 0, 17),
    "mdsi": PairedMetric(mdsi, "MDSI", False, 0, 3),
    "haarpsi": PairedMetric(haarpsi, "HaarPSI", True, 1, 16),
}
