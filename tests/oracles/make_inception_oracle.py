"""Regenerates inception.npz: what PyTorch computes with Inception-v3 as FID takes it.

pip install torch==2.13.0; python tests/oracles/make_inception_oracle.py

Written from the paper's figures and the published names of the weights, independently of medgan_jax, as a table of
units: name, channels, kernel (height x width), "/2" for a stride of two and "+" for padding that keeps the size. The
weights and images are those of `inception_oracle`. No test needs torch.

Keys: `layers` and `shapes` of the convolutions; `features/IMAGE`; `moments/BLOCK`, mean and standard deviation of that
block's output for the first image; `wrong/WHAT`, every eighth feature of the first image with one thing done otherwise.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from inception_oracle import EXPECTED, IMAGES, draw, image  # noqa: E402

STEM = "Conv2d_1a_3x3 32 3x3/2 > Conv2d_2a_3x3 32 3x3 > Conv2d_2b_3x3 64 3x3+ > pool > Conv2d_3b_1x1 80 1x1 > " \
       "Conv2d_4a_3x3 192 3x3 > pool"  # fmt: skip
FIGURE_5 = """branch1x1 64 1x1
branch5x5_1 48 1x1 > branch5x5_2 64 5x5+
branch3x3dbl_1 64 1x1 > branch3x3dbl_2 96 3x3+ > branch3x3dbl_3 96 3x3+
average > branch_pool {} 1x1"""
REDUCTION_A = """branch3x3 384 3x3/2
branch3x3dbl_1 64 1x1 > branch3x3dbl_2 96 3x3+ > branch3x3dbl_3 96 3x3/2
pool"""
FIGURE_6 = """branch1x1 192 1x1
branch7x7_1 {0} 1x1 > branch7x7_2 {0} 1x7+ > branch7x7_3 192 7x1+
branch7x7dbl_1 {0} 1x1 > branch7x7dbl_2 {0} 7x1+ > branch7x7dbl_3 {0} 1x7+ > branch7x7dbl_4 {0} 7x1+ > \
branch7x7dbl_5 192 1x7+
average > branch_pool 192 1x1"""
REDUCTION_B = """branch3x3_1 192 1x1 > branch3x3_2 320 3x3/2
branch7x7x3_1 192 1x1 > branch7x7x3_2 192 1x7+ > branch7x7x3_3 192 7x1+ > branch7x7x3_4 192 3x3/2
pool"""
FIGURE_7 = """branch1x1 320 1x1
branch3x3_1 384 1x1 > branch3x3_2a 384 1x3+ | branch3x3_2b 384 3x1+
branch3x3dbl_1 448 1x1 > branch3x3dbl_2 384 3x3+ > branch3x3dbl_3a 384 1x3+ | branch3x3dbl_3b 384 3x1+
{} > branch_pool 192 1x1"""
BLOCKS = {
    "Mixed_5b": FIGURE_5.format(32),
    "Mixed_5c": FIGURE_5.format(64),
    "Mixed_5d": FIGURE_5.format(64),
    "Mixed_6a": REDUCTION_A,
    "Mixed_6b": FIGURE_6.format(128),
    "Mixed_6c": FIGURE_6.format(160),
    "Mixed_6d": FIGURE_6.format(160),
    "Mixed_6e": FIGURE_6.format(192),
    "Mixed_7a": REDUCTION_B,
    "Mixed_7b": FIGURE_7.format("average"),
    "Mixed_7c": FIGURE_7.format("maximum"),
}


class Network:
    """Runs the table; layers come into being, with their weights, when they are first met."""

    def __init__(self, *, padded_mean: bool = False, last: str = "maximum", epsilon: float = 1e-3) -> None:
        """The published network; the arguments make others of it."""
        self.padded_mean, self.last, self.epsilon = padded_mean, last, epsilon
        self.layers: dict[str, nn.Module] = {}
        self.outputs: dict[str, torch.Tensor] = {}

    def unit(self, text: str, x: torch.Tensor, prefix: str) -> torch.Tensor:
        """One entry of the table."""
        match text.split():
            case ["pool"]:
                return F.max_pool2d(x, 3, 2)
            case ["maximum"] if self.last == "maximum":
                return F.max_pool2d(x, 3, 1, 1)
            case ["average"] | ["maximum"]:
                return F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.padded_mean)
            case [name, channels, kernel]:
                size = [int(side) for side in kernel.rstrip("+").removesuffix("/2").split("x")]
                layer = nn.Module()
                layer.conv = nn.Conv2d(x.shape[1], int(channels), size, 2 if "/2" in kernel else 1,
                                       [side // 2 for side in size] if "+" in kernel else 0, bias=False)  # fmt: skip
                layer.bn = nn.BatchNorm2d(int(channels), self.epsilon)
                layer.eval()
                path = prefix + name
                drawn = {
                    key: torch.tensor(draw(f"{path}.{key}", tuple(value.shape)))
                    for key, value in layer.state_dict().items()
                    if not key.endswith("num_batches_tracked")
                }
                layer.load_state_dict(drawn, strict=False)
                self.layers[path] = layer
                return F.relu(layer.bn(layer.conv(x)))
        raise ValueError(text)

    def line(self, text: str, x: torch.Tensor, prefix: str = "") -> torch.Tensor:
        """Units in a row, the last of which may be two side by side."""
        for step in text.split(" > "):
            x = torch.cat([self.unit(unit, x, prefix) for unit in step.split(" | ")], 1)
        return x

    def features(self, x: torch.Tensor) -> np.ndarray:
        """(2048,) of one image (1, 3, 299, 299) in [0, 1]."""
        with torch.no_grad():
            x = self.line(STEM, 2 * x - 1)
            for name, block in BLOCKS.items():
                x = torch.cat([self.line(line, x, f"{name}.") for line in block.splitlines()], 1)
                self.outputs[name] = x
            return x.mean((2, 3))[0].numpy()


def resized(name: str, **options: bool) -> torch.Tensor:
    """An image as the network takes it."""
    x = torch.tensor(image(name)).permute(0, 3, 1, 2)
    x = F.interpolate(x, (299, 299), mode="bilinear", **{"align_corners": False, **options})
    return x.expand(1, 3, 299, 299)


def main() -> None:
    """Writes the file."""
    network = Network()
    out = {f"features/{name}": network.features(resized(name)) for name in IMAGES[::-1]}
    for name, x in network.outputs.items():
        out[f"moments/{name}"] = np.array([x.mean(), x.std(correction=0)])
    out["layers"] = np.array(list(network.layers))
    out["shapes"] = np.array([layer.conv.weight.shape for layer in network.layers.values()], np.int16)
    x = resized(IMAGES[0])
    wrong = {
        "padded_mean": Network(padded_mean=True).features(x),
        "last_pool": Network(last="average").features(x),
        "epsilon": Network(epsilon=1e-5).features(x),
        "corners": network.features(resized(IMAGES[0], align_corners=True)),
        "range": network.features((x + 1) / 2),
    }
    out |= {f"wrong/{name}": features[::8] for name, features in wrong.items()}
    np.savez_compressed(EXPECTED, **out)


if __name__ == "__main__":
    main()
