"""The peer: the same DCGAN and SNGAN training step in PyTorch, as its users write it. A worker, see `pipe`.

Transposed convolutions up, strided convolutions with `spectral_norm` down, batch normalisation, binary cross-entropy on
logits, one Adam for each network, three backward passes, the losses read at every step. The batch is fixed and lies on
the device, so input costs nothing. Needs PyTorch and the standard library, nothing else.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.pipe import peak_memory, serve


def _weights(module: nn.Module) -> None:
    """The published initial weights (Radford et al. 2016)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(getattr(module, "weight_orig", module.weight), 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def build_generator(size: int, latent: int, maps: int, channels: int = 3) -> nn.Module:
    """Latents (N, latent, 1, 1) to images (N, channels, size, size)."""

    def layers() -> Iterator[nn.Module]:
        widths = [maps * size // (4 * 2**i) // 2 for i in range(int(math.log2(size)) - 2)]  # 512 ... 64 at 64 px
        yield nn.ConvTranspose2d(latent, widths[0], 4, stride=1, padding=0, bias=False)
        for width, following in zip(widths, [*widths[1:], channels], strict=True):
            yield nn.BatchNorm2d(width)
            yield nn.ReLU(inplace=True)
            yield nn.ConvTranspose2d(width, following, 4, stride=2, padding=1, bias=False)
        yield nn.Tanh()

    return nn.Sequential(*layers()).apply(_weights)


def build_discriminator(size: int, maps: int, channels: int = 3, *, spectral: bool = True) -> nn.Module:
    """Images (N, channels, size, size) to logits (N, 1, 1, 1)."""

    def convolution(*arguments: int) -> nn.Module:
        layer = nn.Conv2d(*arguments, bias=False)
        return nn.utils.spectral_norm(layer) if spectral else layer

    def layers() -> Iterator[nn.Module]:
        before, width = channels, maps
        for i in range(int(math.log2(size)) - 2):
            yield convolution(before, width, 4, 2, 1)
            if i:
                yield nn.BatchNorm2d(width)
            yield nn.LeakyReLU(0.2, inplace=True)
            before, width = width, 2 * width
        yield convolution(before, 1, 4, 1, 0)

    return nn.Sequential(*layers()).apply(_weights)


class Training:
    """Both networks, their optimizers, and one fixed batch."""

    def __init__(
        self,
        *,
        size: int,
        batch: int,
        latent: int = 100,
        maps: int = 64,
        device: str = "cpu",
        amp: bool = False,
        compiled: bool = False,
        spectral: bool = True,
    ) -> None:
        """Builds them on `device`; `amp` is bfloat16 autocast, `compiled` is torch.compile on each network."""
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.device, self.amp = torch.device(device), amp
        self.latent_shape = (batch, latent, 1, 1)
        generator = build_generator(size, latent, maps).to(self.device)
        discriminator = build_discriminator(size, maps, spectral=spectral).to(self.device)
        self.gen_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.dis_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.generator = torch.compile(generator, dynamic=False) if compiled else generator
        self.discriminator = torch.compile(discriminator, dynamic=False) if compiled else discriminator
        self.loss = nn.BCEWithLogitsLoss()
        self.reals = torch.rand(batch, 3, size, size, device=self.device) * 2 - 1
        self.real_targets = torch.ones(batch, device=self.device)
        self.fake_targets = torch.zeros(batch, device=self.device)

    def step(self) -> tuple[float, float]:
        """One iteration; the losses of the discriminator and of the generator."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            fakes = self.generator(torch.randn(self.latent_shape, device=self.device))
            self.dis_optimizer.zero_grad()
            loss_real = self.loss(self.discriminator(self.reals).flatten(), self.real_targets)
            loss_real.backward()
            loss_fake = self.loss(self.discriminator(fakes.detach()).flatten(), self.fake_targets)
            loss_fake.backward()
            self.dis_optimizer.step()

            self.gen_optimizer.zero_grad()
            loss_gen = self.loss(self.discriminator(fakes).flatten(), self.real_targets)
            loss_gen.backward()
            self.gen_optimizer.step()
        return (loss_real + loss_fake).item(), loss_gen.item()


class _Worker:
    def setup(self, **options: Any) -> dict[str, Any]:
        self.training = Training(**options)
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def run(self, steps: int) -> dict[str, Any]:
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            losses = self.training.step()
        self._wait()
        return {"seconds": time.perf_counter() - start, "losses": losses}

    def memory(self) -> dict[str, Any]:
        on_gpu = self.training.device.type == "cuda"
        return {"bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory()}

    def matmul(self, size: int, repeats: int, dtype: str) -> dict[str, Any]:
        """The rate of a product of two (size, size) matrices, in FLOP/s."""
        options = {"device": self.training.device, "dtype": getattr(torch, dtype)}
        x = torch.randn(size, size, **options)
        matrix = torch.randn(size, size, **options) / size**0.5
        x = x @ matrix  # the first call loads the kernel
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            x = x @ matrix
        self._wait()
        return {"flops": 2 * size**3 * repeats / (time.perf_counter() - start)}

    def _wait(self) -> None:
        if self.training.device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    worker = _Worker()
    serve({"setup": worker.setup, "run": worker.run, "memory": worker.memory, "matmul": worker.matmul})
