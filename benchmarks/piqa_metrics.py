"""The peer of the paired metrics: PIQA on PyTorch, on the CPU. A worker, see `pipe`.

pip install --no-deps piqa
"""

import sys
import time
from typing import Any
from unittest.mock import MagicMock

try:
    import torchvision  # noqa: F401
except ImportError:  # which PIQA imports for a metric that is not asked for here
    for module in ("", ".models", ".transforms", ".ops"):
        sys.modules["torchvision" + module] = MagicMock()

import piqa
import torch

from benchmarks.pipe import serve


class _Worker:
    def setup_metrics(self, *, size: int, pairs: int) -> dict[str, Any]:
        """Random images, as floats in PIQA's own layout."""
        torch.manual_seed(0)
        self.x, self.y = torch.rand(2, pairs, 3, size, size)
        kinds = (piqa.PSNR, piqa.SSIM, piqa.MS_GMSD, piqa.MDSI, piqa.HaarPSI)
        self.metrics = [kind(reduction="none") for kind in kinds]
        return {
            "torch": torch.__version__,
            "piqa": getattr(piqa, "__version__", ""),
            "threads": torch.get_num_threads(),
        }

    @torch.no_grad()
    def score(self) -> dict[str, Any]:
        """Seconds for all five over all pairs, and the seconds of each."""
        each = {}
        for metric in self.metrics:
            start = time.perf_counter()
            metric(self.x, self.y)
            each[type(metric).__name__] = time.perf_counter() - start
        return {"seconds": sum(each.values()), "each": each}


if __name__ == "__main__":
    worker = _Worker()
    serve({"setup_metrics": worker.setup_metrics, "score": worker.score})
