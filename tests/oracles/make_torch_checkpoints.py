"""Regenerates torch_checkpoints/: generators as others write them, trainings' checkpoints, and what PyTorch computes.

pip install torch==2.13.0; python tests/oracles/make_torch_checkpoints.py

In expected.npz, of each FILE with a generator alone: FILE/eval and FILE/train, its images at some
pixels. Of checkpoints: training/KEY and lightning/KEY, those of each generator in evaluation mode. No test needs torch.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).parent))
from published import LATENT, latents, some  # noqa: E402

FOLDER = Path(__file__).parent / "torch_checkpoints"


def up(inputs: int, maps: int, *, first: bool = False, bias: bool = True) -> list[nn.Module]:
    """To twice the resolution; `first`: from 1x1 to 4x4."""
    stride = (1, 0) if first else (2, 1)
    return [nn.ConvTranspose2d(inputs, maps, 4, *stride, bias=bias), nn.BatchNorm2d(maps), nn.ReLU()]


class Network(nn.Module):
    """One attribute of any name, a Sequential."""

    def __init__(self, name: str, *layers: nn.Module) -> None:
        """Takes the layers."""
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs them."""
        (layers,) = self.children()
        return layers(x)


def generators() -> dict[str, nn.Module]:
    """Of 16 px: with all biases, in blocks, and with a 1x1 last layer of either kind."""
    body = [*up(LATENT, 8, first=True), *up(8, 4)]
    return {
        "biases": Network("main", *body, nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Tanh()),
        "blocks": Network(
            "gen",
            nn.Sequential(*up(LATENT, 8, first=True, bias=False)),
            nn.Sequential(*up(8, 4, bias=False)),
            nn.ConvTranspose2d(4, 3, 4, 2, 1),
            nn.Tanh(),
        ),
        "pointwise": Network(
            "main", *up(LATENT, 8, first=True), *up(8, 4), *up(4, 2), nn.Conv2d(2, 3, 1), nn.Tanh()
        ),
        "pointwise_transposed": Network(
            "main",
            *up(LATENT, 8, first=True, bias=False),
            *up(8, 4, bias=False),
            *up(4, 2, bias=False),
            nn.ConvTranspose2d(2, 1, 1, bias=False),
            nn.Tanh(),
        ),
    }  # fmt: skip


def published(channels: int = 1) -> tuple[Network, Network]:
    """The generator and the discriminator without biases, 16 px."""
    last = nn.ConvTranspose2d(4, channels, 4, 2, 1, bias=False)
    g = Network("main", *up(LATENT, 8, first=True, bias=False), *up(8, 4, bias=False), last, nn.Tanh())
    d = Network(
        "main",
        nn.Conv2d(channels, 4, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 1, 4, 1, 0, bias=False),
        nn.Sigmoid(),
    )
    draw(g), draw(d)
    return g, d


def draw(module: nn.Module) -> None:
    """Values far from the initial ones."""
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 4:
            nn.init.normal_(tensor, 0.0, 0.4)
        elif name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2.0)
        elif tensor.ndim == 1:
            nn.init.normal_(tensor, 1.0 if name.endswith("weight") else 0.0, 0.3)


def drawn(module: nn.Module, *, training: bool = False) -> np.ndarray:
    """Some pixels of the images of `published.latents`; the statistics stay."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        images = module.train(training)(torch.tensor(latents())[:, :, None, None]).numpy().transpose(0, 2, 3, 1)
    module.load_state_dict(state)
    return some(images)


def main() -> None:
    """Writes the files."""
    torch.manual_seed(0), torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    out: dict[str, np.ndarray] = {}
    for name, module in generators().items():
        draw(module)
        torch.save(module.state_dict(), FOLDER / f"{name}.pth")
        out |= {f"{name}/eval": drawn(module), f"{name}/train": drawn(module, training=True)}

    g, d = published()
    averaged = AveragedModel(g, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(published()[0])
    averaged.update_parameters(published()[0])
    optimizer = torch.optim.Adam(g.parameters())
    d(g(torch.randn(2, LATENT, 1, 1))).sum().backward()
    optimizer.step()
    draw(g)
    training = {
        "epoch": 3,
        "netG": nn.DataParallel(g).state_dict(),
        "netD": {f"_orig_mod.{name}": tensor for name, tensor in d.state_dict().items()},  # as torch.compile has it
        "netG_ema": averaged.state_dict(),
        "optimizerG": optimizer.state_dict(),
        "fixed_noise": torch.randn(2, LATENT, 1, 1),
        "args": argparse.Namespace(lr=2e-4, device=torch.device("cpu"), out=Path("runs")),
        "best_fid": np.float64(12.5),
        "rng": {"numpy": np.random.default_rng(0).bytes(4), "weights": np.zeros(3)},
    }
    torch.save(training, FOLDER / "training.pt")
    out |= {"training/netG": drawn(g), "training/netG_ema": drawn(averaged.module)}

    g, d = published(3)
    state = {f"{name}.{key}": t for name, m in {"generator": g, "discriminator": d}.items() for key, t in
             m.state_dict().items()}  # fmt: skip
    state |= {"fid.inception.weight": torch.zeros(2, 2)}
    lightning = {"epoch": 1, "pytorch-lightning_version": "2.5.0", "state_dict": state, "loops": {"fit_loop": {}}}
    torch.save({**lightning, "optimizer_states": [optimizer.state_dict()]}, FOLDER / "lightning.ckpt")
    out["lightning/generator"] = drawn(g)
    torch.save(g, FOLDER / "module.pt")  # the whole object, a program
    np.savez_compressed(FOLDER / "expected.npz", **out)


if __name__ == "__main__":
    main()
