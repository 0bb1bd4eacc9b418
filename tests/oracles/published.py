"""Which networks the files in published/ hold, and on what PyTorch ran them: shared by its maker and its readers."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "published"
EXPECTED = FOLDER / "expected.npz"
SIZES = (64, 128, 256)  # px, of which expected.npz has outputs; the others are there for their form
LATENT, BATCH = 4, 3
GENERATORS = {  # name to image size, channels, feature maps
    "netG16.pth": (16, 1, 2),
    "netG32_legacy.pth": (32, 3, 1),
    "netG64.zip": (64, 3, 2),
    "netG128_parallel.zip": (128, 3, 1),
    "netG256.zip": (256, 1, 1),
}
DISCRIMINATORS = {  # and spectral norm, batch norm
    "netD64_spectral.zip": (64, 3, 2, True, True),
    "netD64_critic.zip": (64, 3, 2, False, False),
    "netD128_parametrized.zip": (128, 3, 1, True, True),
    "netD256.zip": (256, 1, 1, False, True),
}


def latents() -> np.ndarray:
    """(BATCH, LATENT) float32."""
    rows, columns = np.mgrid[:BATCH, :LATENT]
    return ((7 * rows + 5 * columns + rows * columns) % 11 / 4 - 1.25).astype(np.float32)


def images(size: int, channels: int) -> np.ndarray:
    """(BATCH, size, size, channels) float32 in [-1, 1], without symmetries."""
    n, i, j, c = np.ogrid[:BATCH, :size, :size, :channels]
    return ((i * i + 3 * i * j + 5 * j + 7 * c * j + 11 * n * i + c * n) % 31 / 16 - 0.9375).astype(np.float32)


def some(images: np.ndarray) -> np.ndarray:
    """Pixels of images (N, size, size, C) at even and odd places, the first and the last included."""
    size = images.shape[1]
    places = np.unique([0, 1, *range(5, size - 2, size // 6 | 1), size - 1])
    return images[:, places[:, None], places[None]]
