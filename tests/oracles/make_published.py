"""Regenerates published/: trained networks as PyTorch saves them, made small, and what PyTorch computes with them.

pip install torch==2.13.0; python tests/oracles/make_published.py

Written from the papers and PyTorch's documentation, independently of medgan_jax. Weights are drawn from a few levels,
so that the files deflate well. In expected.npz, of each file of a published size: FILE/eval and FILE/train, outputs in
either mode, of generators at some pixels; FILE/after, all vectors of the state dict one after the other, as the pass in
training mode leaves them. No test needs torch.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

sys.path.insert(0, str(Path(__file__).parent))
from published import BATCH, DISCRIMINATORS, EXPECTED, FOLDER, GENERATORS, LATENT, SIZES, images, latents, some  # noqa: E402


class Network(nn.Module):
    """The published classes: one Sequential, called main."""

    def __init__(self, layers: list[nn.Module]) -> None:
        """Takes the layers."""
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs them."""
        return self.main(x)


def generator(size: int, channels: int, maps: int) -> Network:
    """Latents (N, LATENT, 1, 1) to images."""
    width = maps * size // 8
    layers = [nn.ConvTranspose2d(LATENT, width, 4, 1, 0, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    while width > maps:
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width // 2)]
        layers += [nn.ReLU(True)]
        width //= 2
    return Network([*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()])


def discriminator(size: int, channels: int, maps: int, wrap: object, batch_norm: bool, last: list) -> Network:
    """Images to scores (N, 1, 1, 1), through the layers `last`."""
    layers = [wrap(nn.Conv2d(channels, maps, 4, 2, 1, bias=False)), nn.LeakyReLU(0.2, True)]
    width = maps
    while width < maps * size // 8:
        layers += [wrap(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False))]
        width *= 2
        layers += [nn.BatchNorm2d(width)] * batch_norm + [nn.LeakyReLU(0.2, True)]
    return Network([*layers, wrap(nn.Conv2d(width, 1, 4, 1, 0, bias=False)), *last])


def draw(module: nn.Module) -> None:
    """Values such that activations neither die nor explode, and no two layers can be mistaken for each other."""
    for name, tensor in module.state_dict().items():
        levels = torch.randint(-2, 3, tensor.shape) / 2
        if tensor.ndim == 4:
            fan_in = tensor[0].numel() if "netD" in module.name else tensor.shape[0] * tensor[0, 0].numel() / 4
            tensor.copy_(levels * 2 ** round(np.log2(1 / np.sqrt(fan_in))))
        elif name.endswith(("weight", "running_var")):
            tensor.copy_(1 + levels / 4)
        elif name.endswith(("bias", "running_mean")):
            tensor.copy_(levels / 8)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(1234)


def save(name: str, state: dict[str, torch.Tensor]) -> None:
    """Writes a file in the form that its name says."""
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization="legacy" not in name)
    if name.endswith(".zip"):
        with zipfile.ZipFile(FOLDER / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            inner = zipfile.ZipInfo(name.split("_")[0].removesuffix(".zip") + ".pth")
            archive.writestr(inner, file.getvalue(), zipfile.ZIP_DEFLATED)
    else:
        (FOLDER / name).write_bytes(file.getvalue())


def main() -> None:
    """Writes the files."""
    torch.manual_seed(0), torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    out: dict[str, np.ndarray] = {}
    for name in (*GENERATORS, *DISCRIMINATORS):
        if name in GENERATORS:
            size, channels, maps = GENERATORS[name]
            module = generator(size, channels, maps)
            x = torch.tensor(latents())[:, :, None, None]
            runs = module
        else:
            size, channels, maps, spectral, batch_norm = DISCRIMINATORS[name]
            wrap = parametrizations.spectral_norm if "parametrized" in name else spectral_norm
            wrap = wrap if spectral else (lambda layer: layer)
            module = discriminator(size, channels, maps, wrap, batch_norm, [] if "critic" in name else [nn.Sigmoid()])
            x = torch.tensor(images(size, channels)).permute(0, 3, 1, 2)
            runs = module.main if "critic" in name else module.main[:-1]  # logits tell more than scores
        module.name = name
        draw(module)
        with torch.no_grad():
            if name in DISCRIMINATORS and spectral:
                # So that the estimates of the singular values have settled. The parametrization improves v last, where
                # the older one improves u last: only when nothing moves any more are they the same.
                for _ in range(500 if "parametrized" in name else 10):
                    module(x)
                for key, tensor in module.state_dict().items():
                    if "running_mean" in key or "running_var" in key:
                        tensor.copy_(torch.round(tensor * 8) / 8 + ("var" in key) / 8)
            saved = nn.DataParallel(module) if "parallel" in name else module
            save(name, saved.state_dict())
            if size not in SIZES:
                continue
            for mode in ("eval", "train"):
                module.train(mode == "train")
                y = runs(x).numpy()
                out[f"{name}/{mode}"] = some(y.transpose(0, 2, 3, 1)) if name in GENERATORS else y.reshape(BATCH)
            vectors = [tensor.numpy() for tensor in module.state_dict().values() if tensor.ndim == 1]
            out[f"{name}/after"] = np.concatenate(vectors) if vectors else np.zeros(0)
    np.savez_compressed(EXPECTED, **out)


if __name__ == "__main__":
    main()
