"""Regenerates torch_networks.npz: what PyTorch computes with the published networks, made small.

pip install torch==2.13.0; python tests/oracles/make_torch_oracle.py

Written from the papers and PyTorch's documentation, independently of medgan_jax. Keys are CASE/PART/NAME: state dicts
before and after two training steps, inputs and outputs of each step. No test needs torch.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

LATENT, MAPS, BATCH = 8, 4, 4


def generator(size: int, channels: int) -> nn.Sequential:
    width = MAPS * size // 8
    layers = [nn.ConvTranspose2d(LATENT, width, 4, 1, 0, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    while width > MAPS:
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()]
        width //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(size: int, channels: int, spectral: bool) -> nn.Sequential:
    wrap = nn.utils.spectral_norm if spectral else (lambda module: module)
    layers = [wrap(nn.Conv2d(channels, MAPS, 4, 2, 1, bias=False)), nn.LeakyReLU(0.2)]
    width = MAPS
    while width < MAPS * size // 8:
        layers += [wrap(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, wrap(nn.Conv2d(width, 1, 4, 1, 0, bias=False)))


def randomise(module: nn.Module) -> None:
    """Weights far from their initial values, so that no two layers can be mistaken for each other."""
    for name, tensor in module.state_dict().items():
        if name.endswith(("weight", "weight_orig")) and tensor.ndim == 4:
            nn.init.normal_(tensor, 0.0, 0.1)
        elif name.endswith("weight"):
            nn.init.normal_(tensor, 1.0, 0.2)
        elif name.endswith(("bias", "running_mean")):
            nn.init.normal_(tensor, 0.0, 0.2)
        elif name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2.0)


def main() -> None:
    """Writes the file."""
    torch.manual_seed(0)
    out: dict[str, np.ndarray] = {}

    def keep(prefix: str, module: nn.Module) -> None:
        for name, tensor in module.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                out[f"{prefix}/{name}"] = tensor.detach().numpy().copy()

    for case, size, channels, spectral in (
        ("dcgan16", 16, 1, False), ("sngan16", 16, 1, True), ("sngan32", 32, 3, True)
    ):  # fmt: skip
        g, d = generator(size, channels), discriminator(size, channels, spectral)
        randomise(g), randomise(d)
        optimizers = [torch.optim.Adam(m.parameters(), lr, (0.5, 0.999)) for m, lr in ((g, 2e-4), (d, 5e-4))]
        bce = nn.BCEWithLogitsLoss()
        for _ in range(20):  # so that the estimates of the singular values have settled
            d(torch.rand(BATCH, channels, size, size))
        keep(f"{case}/before/gen", g), keep(f"{case}/before/dis", d)
        for step in range(2):
            reals = torch.rand(BATCH, channels, size, size) * 2 - 1
            latents = torch.randn(BATCH, LATENT, 1, 1)
            out[f"{case}/step{step}/reals"] = reals.numpy()
            out[f"{case}/step{step}/latents"] = latents.numpy()[:, :, 0, 0]
            g.eval(), d.eval()
            with torch.no_grad():
                out[f"{case}/step{step}/eval_images"] = g(latents).numpy()
                out[f"{case}/step{step}/eval_logits"] = d(reals).flatten().numpy()
            g.train(), d.train()

            d.zero_grad()
            fakes = g(latents)
            real_logits = d(reals).flatten()
            fake_logits = d(fakes.detach()).flatten()
            loss_dis = bce(real_logits, torch.full((BATCH,), 0.9)) + bce(fake_logits, torch.zeros(BATCH))
            loss_dis.backward()
            optimizers[1].step()
            g.zero_grad()
            logits = d(fakes).flatten()
            loss_gen = bce(logits, torch.ones(BATCH))
            loss_gen.backward()
            optimizers[0].step()
            out[f"{case}/step{step}/fakes"] = fakes.detach().numpy()
            out[f"{case}/step{step}/loss_dis"] = loss_dis.detach().numpy()
            out[f"{case}/step{step}/loss_gen"] = loss_gen.detach().numpy()
            out[f"{case}/step{step}/score_real"] = real_logits.sigmoid().mean().detach().numpy()
            out[f"{case}/step{step}/score_fake_before"] = fake_logits.sigmoid().mean().detach().numpy()
            out[f"{case}/step{step}/score_fake_after"] = logits.sigmoid().mean().detach().numpy()
        keep(f"{case}/after/gen", g), keep(f"{case}/after/dis", d)
    # A critic without batch normalisation, and the gradient penalty at the images themselves, differentiated twice.
    d = nn.Sequential(*(layer for layer in discriminator(32, 3, False) if not isinstance(layer, nn.BatchNorm2d)))
    randomise(d)
    keep("critic32/before/dis", d)
    images = torch.rand(BATCH, 3, 32, 32) * 2 - 1
    images.requires_grad_()
    (slopes,) = torch.autograd.grad(d(images).sum(), images, create_graph=True)
    penalty = ((slopes.flatten(1).norm(dim=1) - 1) ** 2).mean()
    penalty.backward()
    out |= {"critic32/penalty/images": images.detach().numpy(), "critic32/penalty/value": penalty.detach().numpy()}
    out |= {f"critic32/penalty/dis/{name}": weight.grad.numpy() for name, weight in d.named_parameters()}
    np.savez_compressed(Path(__file__).parent / "torch_networks.npz", **out)


if __name__ == "__main__":
    main()
