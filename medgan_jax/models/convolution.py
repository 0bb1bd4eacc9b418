"""The DCGAN's two convolutions, 4x4 with stride 2 and padding 1, down and up, each in two lowerings.

Layout: images (N, H, W, C), kernels (4, 4, C_in, C_out), any float type. Kernels follow PyTorch's convention in both
directions: `down` correlates (output i reads inputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3) and `up` is its
transpose (input i writes outputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3; no tap is mirrored), so a weight of
`torch.nn.Conv2d` or `ConvTranspose2d` needs a transposition of axes and nothing else.

On GPU and TPU the native convolution is the right lowering. XLA's CPU backend has slow paths for strided and dilated
convolutions and for their gradients; there the same sums are written as matrix products between cheap rearrangements,
whose gradients are matrix products too. Seen in cells of 2x2 pixels, both convolutions have a 2x2 kernel and stride 1.
That lets Winograd's minimal filtering F(2x2, 2x2) (Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308) do with 9
multiplications what takes 16, and its transforms only add and subtract, so rounding stays that of float32.
`lowering` is "native", "matmul", or "auto": by backend.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

KERNEL_SIZE = 4
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Below so many tiles, or so few channels, transforming kernel and image costs more than the multiplications saved.
_MIN_TILES = 128
_MIN_CHANNELS = 16


def _use_matmul(lowering: str) -> bool:
    if lowering not in ("auto", "native", "matmul"):
        raise ValueError(f"lowering must be auto, native or matmul, not {lowering!r}")
    return lowering == "matmul" or (lowering == "auto" and jax.default_backend() == "cpu")


def downsampling_convolution(x: jax.Array, kernel: jax.Array, *, lowering: str = "auto") -> jax.Array:
    """Convolves with a 4x4 kernel, stride 2 and padding 1.

    Args:
      x: images (N, H, W, C_in), H and W even.
      kernel: (4, 4, C_in, C_out).
      lowering: "native", "matmul" or "auto".

    Returns:
      (N, H / 2, W / 2, C_out).
    """
    if not _use_matmul(lowering):
        return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)
    n, h, w, c = x.shape
    cells = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cells = cells.reshape(n, h // 2 + 1, 2, w // 2 + 1, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return _convolve_cells(cells.reshape(n, h // 2 + 1, w // 2 + 1, 4 * c), _cell_kernel(kernel))


def upsampling_convolution(x: jax.Array, kernel: jax.Array, *, lowering: str = "auto") -> jax.Array:
    """Transposed convolution with a 4x4 kernel, stride 2 and padding 1.

    Args:
      x: images (N, H, W, C_in).
      kernel: (4, 4, C_in, C_out).
      lowering: "native", "matmul" or "auto".

    Returns:
      (N, 2 H, 2 W, C_out).
    """
    if not _use_matmul(lowering):
        return lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_DIMENSIONS
        )
    n, h, w, _ = x.shape
    c = kernel.shape[-1]
    convolve = functools.partial(_convolve_cells, kernel=_cell_kernel(kernel.swapaxes(2, 3)))
    (cells,) = jax.linear_transpose(convolve, jax.ShapeDtypeStruct((n, h + 1, w + 1, 4 * c), x.dtype))(x)
    pixels = cells.reshape(n, h + 1, w + 1, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(n, 2 * h + 2, 2 * w + 2, c)[:, 1:-1, 1:-1]


def _cell_kernel(kernel: jax.Array) -> jax.Array:
    """(4, 4, C_in, C_out) on pixels to (2, 2, 4 C_in, C_out) on cells of 2x2 pixels."""
    _, _, c_in, c_out = kernel.shape
    return kernel.reshape(2, 2, 2, 2, c_in, c_out).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c_in, c_out)


def _convolve_cells(cells: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlates (N, H + 1, W + 1, C) with (2, 2, C, F), stride 1, to (N, H, W, F)."""
    n, h, w, c = cells.shape
    h, w, f = h - 1, w - 1, kernel.shape[-1]
    tiles = n * h * w // 4
    if h % 2 == w % 2 == 0 and tiles >= _MIN_TILES and min(c, f) >= _MIN_CHANNELS:
        return _convolve_tiles(cells, kernel)
    patches = jnp.concatenate([cells[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)], axis=-1)
    return (patches.reshape(-1, 4 * c) @ kernel.reshape(4 * c, f)).reshape(n, h, w, f)


def _convolve_tiles(cells: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same by F(2x2, 2x2), for even H and W.

    In one dimension the outputs y0 = d0 g0 + d1 g1 and y1 = d1 g0 + d2 g1 come from three products:
    a = (d0 - d1) g0, b = d1 (g0 + g1), c = (d1 - d2) g1; y0 = a + b, y1 = b - c.
    """
    n, h, w, c = cells.shape
    h, w, f = h - 1, w - 1, kernel.shape[-1]

    def split(d: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        size = d.shape[axis]
        d0, d1, d2 = (lax.slice_in_dim(d, i, size - 2 + i, 2, axis) for i in range(3))
        return d0 - d1, d1, d1 - d2

    def combine(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        return a + b, b - c

    images = [d for rows in split(cells, 1) for d in split(rows, 2)]
    (g00, g01), (g10, g11) = kernel
    g_0, g_1 = g00 + g10, g01 + g11
    kernels = (g00, g00 + g01, g01, g_0, g_0 + g_1, g_1, g10, g10 + g11, g11)
    products = [(d.reshape(-1, c) @ g).reshape(n, h // 2, w // 2, f) for d, g in zip(images, kernels, strict=True)]
    columns = [jnp.stack(combine(*products[i : i + 3]), axis=3) for i in (0, 3, 6)]
    return jnp.stack(combine(*columns), axis=2).reshape(n, h, w, f)
