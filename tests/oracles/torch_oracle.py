"""Reads torch_networks.npz and lays PyTorch's state dicts out as ours."""

from pathlib import Path

import numpy as np

_FILE = Path(__file__).parent / "torch_networks.npz"
CASES = ("dcgan16", "sngan16", "sngan32")


def images(array: np.ndarray) -> np.ndarray:
    """NCHW to NHWC."""
    return array.transpose(0, 2, 3, 1)


def load(case: str, part: str) -> dict[str, np.ndarray]:
    """All arrays of one case and moment, such as ("sngan32", "before"), by the rest of their name."""
    with np.load(_FILE) as file:
        prefix = f"{case}/{part}/"
        return {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}


def variables(arrays: dict[str, np.ndarray], network: str) -> dict[str, dict]:
    """The Flax variables of "gen" or "dis" from the state dict in `arrays`; `Sequential` order gives the names."""
    state = {name.removeprefix(f"{network}/"): a for name, a in arrays.items() if name.startswith(f"{network}/")}
    positions = sorted({int(name.split(".")[0]) for name in state})
    result: dict[str, dict] = {"params": {}, "batch_stats": {}, "spectral": {}}
    conv = -1
    for position in positions:
        layer = {name.split(".")[1]: a for name, a in state.items() if name.split(".")[0] == str(position)}
        if "running_mean" in layer:
            result["params"][f"norm_{conv}"] = {"scale": layer["weight"], "bias": layer["bias"]}
            result["batch_stats"][f"norm_{conv}"] = {"mean": layer["running_mean"], "var": layer["running_var"]}
            continue
        conv += 1
        weight = layer.get("weight_orig", layer.get("weight"))
        # Conv2d is (out, in, h, w), ConvTranspose2d (in, out, h, w); ours is (h, w, in, out).
        axes = (2, 3, 0, 1) if network == "gen" else (2, 3, 1, 0)
        result["params"][f"conv_{conv}"] = {"kernel": weight.transpose(axes)}
        if "weight_u" in layer:
            v = layer["weight_v"].reshape(weight.shape[1:]).transpose(1, 2, 0).reshape(-1)
            result["spectral"][f"conv_{conv}"] = {"spectral_norm": {"u": layer["weight_u"], "v": v}}
    return {name: collection for name, collection in result.items() if collection}
