"""Regenerates torch_files/: one state dict in the forms in which PyTorch saves it, and its numbers.

pip install torch==2.13.0; python tests/oracles/make_torch_files.py

No test needs torch.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent / "torch_files"


def state_dict() -> OrderedDict:
    """A small network's, and tensors of every type and layout that a file may hold."""
    torch.manual_seed(0)
    state = nn.Sequential(nn.Conv2d(2, 3, (1, 2)), nn.BatchNorm2d(3)).state_dict()
    base = torch.arange(24.0).reshape(4, 6)
    state["shared.whole"] = base
    state["shared.transposed"] = base.T
    state["shared.strided"] = base[1::2, 1::3]
    state["shared.overlapping"] = base.flatten().unfold(0, 4, 2)
    state["shared.diagonal"] = base.diagonal()
    state["module.parallel.weight"] = nn.Parameter(torch.randn(3))
    state["empty"] = torch.zeros(0, 3)
    state["scalar"] = torch.tensor(2.5, dtype=torch.float64)
    for dtype in ("float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool"):
        state[f"types.{dtype}"] = torch.tensor([[0, 1, 3], [7, 100, 2]]).to(getattr(torch, dtype))
    state["types.bfloat16_scalar"] = torch.tensor(-3.140625, dtype=torch.bfloat16)
    state["types.bool_scalar"] = torch.tensor(True)
    return state


def main() -> None:
    """Writes the files."""
    FOLDER.mkdir(exist_ok=True)
    state = state_dict()
    torch.save(state, FOLDER / "zip.pth")
    torch.save(state, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict()
    checkpoint = {"epoch": 3, "lr": 1e-3, "best": None, "done": False, "optimizer": optimizer, "state_dict": state}
    torch.save({**checkpoint, "shape": torch.Size([1, 2]), "dtype": torch.float32}, FOLDER / "checkpoint.pth",
               pickle_protocol=4)  # fmt: skip
    expected = {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        for name, tensor in state.items()
    }
    np.savez_compressed(FOLDER / "expected.npz", **expected)


if __name__ == "__main__":
    main()
