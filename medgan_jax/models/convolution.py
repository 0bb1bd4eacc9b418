"""The DCGAN's two convolutions, 4x4 with stride 2 and padding 1, down and up, each in two lowerings.

Layout: images (N, H, W, C), kernels (4, 4, C_in, C_out), any float type. Kernels follow PyTorch's convention in both
directions: `down` correlates (output i reads inputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3) and `up` is its
transpose (input i writes outputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3; no tap is mirrored), so a weight of
`torch.nn.Conv2d` or `ConvTranspose2d` needs a transposition of axes and nothing else.

On GPU and TPU the native convolution is the right lowering. XLA's CPU backend has slow paths for strided and dilated
convolutions and for their gradients; there the same sums are written as one matrix product between cheap
rearrangements, whose gradients are matrix products too. `lowering` is "native", "matmul", or "auto": by backend.
"""

import jax
import jax.numpy as jnp
from jax import lax

KERNEL_SIZE = 4
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


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
    n, h, w, c_in = x.shape
    c_out = kernel.shape[-1]
    # Space to depth: the padded image as cells of 2x2 pixels; each output reads 2x2 neighbouring cells.
    cells = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cells = cells.reshape(n, h // 2 + 1, 2, w // 2 + 1, 2, c_in).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(n, h // 2 + 1, w // 2 + 1, 4 * c_in)
    patches = jnp.concatenate([cells[:, i : i + h // 2, j : j + w // 2] for i in (0, 1) for j in (0, 1)], axis=-1)
    weights = kernel.reshape(2, 2, 2, 2, c_in, c_out).transpose(0, 2, 1, 3, 4, 5).reshape(16 * c_in, c_out)
    return (patches.reshape(-1, 16 * c_in) @ weights).reshape(n, h // 2, w // 2, c_out)


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
    n, h, w, c_in = x.shape
    c_out = kernel.shape[-1]
    # Each input pixel writes a 4x4 patch; in cells of 2x2 outputs that is four neighbouring cells, summed.
    weights = kernel.reshape(2, 2, 2, 2, c_in, c_out).transpose(4, 0, 2, 1, 3, 5).reshape(c_in, 16 * c_out)
    patches = (x.reshape(-1, c_in) @ weights).reshape(n, h, w, 2, 2, 4 * c_out)
    cells = sum(
        jnp.pad(patches[:, :, :, i, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0))) for i in (0, 1) for j in (0, 1)
    )
    pixels = cells.reshape(n, h + 1, w + 1, 2, 2, c_out).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(n, 2 * h + 2, 2 * w + 2, c_out)[:, 1:-1, 1:-1]
