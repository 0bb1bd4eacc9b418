"""Convolutions: the DCGAN's two, 4x4 with stride 2 and padding 1, down and up, each in two lowerings; and 3x3 ones.

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

A transposed convolution lays a grid over what it makes, as its outputs at even and odd places come from different taps
(Odena et al. 2016, doi:10.23915/distill.00003). Enlarging first and convolving then has no such parts. Both are linear,
so together they are again a transposed convolution by a 4x4 kernel, at its speed: `upsampling_kernel` writes it down.
Likewise a 3x3 convolution before an average of 2x2 pixels is a 4x4 one with stride 2: the same function, at 4
multiplications where 9 were, and less by Winograd. A 3x3 convolution alone has stride 1, at which XLA's own is as fast
on CPU as anything here.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

KERNEL_SIZE = 4
UPSAMPLING_SIZES = {"transposed": 4, "nearest": 3, "bilinear": 2}  # of the kernel that is learnt, by kind of upsampling
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
    cells = cells.reshape(n, h // 2 + 1, w // 2 + 1, 4 * c)
    kernel = kernel.reshape(2, 2, 2, 2, c, -1).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, -1)
    h, w, f = h // 2, w // 2, kernel.shape[-1]
    if not _worth_tiling(n, h, w, 4 * c, f):
        return (_patches(cells) @ kernel.reshape(-1, f)).reshape(n, h, w, f)
    products = [d @ g for d, g in zip(_split_cells(cells), _split_kernel(kernel), strict=True)]
    return _combine_outputs(products, (n, h, w, f))


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
    n, h, w, c = x.shape
    f = kernel.shape[-1]
    kernel = kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * f)
    shape = (n, h + 1, w + 1, 4 * f)
    if not _worth_tiling(n, h, w, c, 4 * f):
        (cells,) = jax.linear_transpose(_patches, jax.ShapeDtypeStruct(shape, x.dtype))(
            x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)
        )
    else:
        products = [y @ g for y, g in zip(_split_outputs(x), _split_kernel(kernel), strict=True)]
        cells = _combine_cells(products, shape)
    pixels = cells.reshape(n, h + 1, w + 1, 2, 2, f).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(n, 2 * h + 2, 2 * w + 2, f)[:, 1:-1, 1:-1]


def upsampling_kernel(kernel: jax.Array, upsample: str) -> jax.Array:
    """The kernel for `upsampling_convolution` that enlarges twofold and then convolves with `kernel`.

    Args:
      kernel: (S, S, C_in, C_out), S of `UPSAMPLING_SIZES`.
      upsample: "nearest": doubles each pixel, then correlates, with zeros beyond the edge; "bilinear": puts the mean of
        two neighbours between them, then correlates with a 2x2 kernel; "transposed": as it is.

    Returns:
      (4, 4, C_in, C_out). Except at the edges, even and odd outputs of a constant image are the same for the first two.

    Raises:
      ValueError: the kernel is of another size, or `upsample` of no known kind.
    """
    if upsample not in UPSAMPLING_SIZES or kernel.shape[:2] != 2 * (UPSAMPLING_SIZES[upsample],):
        raise ValueError(f"upsample={upsample!r} has no kernel of shape {kernel.shape}; sizes are {UPSAMPLING_SIZES}")
    if upsample == "transposed":
        return kernel
    spread = {"nearest": (1.0, 1.0), "bilinear": (0.5, 1.0, 0.5)}[upsample]
    return _spread(kernel[::-1, ::-1], spread)  # an input writes to its outputs what these read from it, in reverse


def _spread(kernel: jax.Array, shares: tuple[float, ...]) -> jax.Array:
    """(S, S, C, F) to (4, 4, C, F): the kernel's multiples by `shares`, each a row and a column further, summed."""
    missing = KERNEL_SIZE - kernel.shape[0]
    for axis in (0, 1):
        kernel = sum(share * _pad(kernel, axis, i, missing - i) for i, share in enumerate(shares))
    return kernel


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with a 3x3 kernel, stride 1 and padding 1: (N, H, W, C_in), (3, 3, C_in, C_out) to (N, H, W, C_out)."""
    return lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=_DIMENSIONS)


def reducing_convolution(x: jax.Array, kernel: jax.Array, *, lowering: str = "auto") -> jax.Array:
    """Convolves with a 3x3 kernel and padding 1, then averages squares of 2x2 pixels.

    Args:
      x: images (N, H, W, C_in), H and W even.
      kernel: (3, 3, C_in, C_out), of any type; the result is of that of `x`.
      lowering: "native", "matmul" or "auto".

    Returns:
      (N, H / 2, W / 2, C_out).
    """
    return downsampling_convolution(x, _spread(kernel / 4, (1.0, 1.0)).astype(x.dtype), lowering=lowering)


def _worth_tiling(n: int, h: int, w: int, c: int, f: int) -> bool:
    """Whether (N, H + 1, W + 1, C) cells and (N, H, W, F) outputs should go by tiles of 2x2 outputs."""
    return h % 2 == w % 2 == 0 and n * h * w // 4 >= _MIN_TILES and min(c, f) >= _MIN_CHANNELS


def _patches(cells: jax.Array) -> jax.Array:
    """(N, H + 1, W + 1, C) to (N H W, 4 C), the 2x2 cells that each output sees."""
    _, h, w, c = cells.shape
    corners = [cells[:, i : h - 1 + i, j : w - 1 + j] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(corners, axis=-1).reshape(-1, 4 * c)


# F(2x2, 2x2). In one dimension the outputs y0 = d0 g0 + d1 g1 and y1 = d1 g0 + d2 g1 come from three products,
# a = (d0 - d1) g0, b = d1 (g0 + g1), c = (d1 - d2) g1, as y0 = a + b, y1 = b - c. In two, from nine: aa, ab, ... cc.
# The transposed convolution runs the same way backwards: what splits outputs is the transpose of what combines them.


def _split_kernel(kernel: jax.Array) -> list[jax.Array]:
    """(2, 2, C, F) to nine (C, F)."""
    return [g for rows in _sums(*kernel) for g in _sums(*rows)]


def _sums(g0: jax.Array, g1: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return g0, g0 + g1, g1


@jax.custom_vjp
def _split_cells(cells: jax.Array) -> list[jax.Array]:
    """(N, H + 1, W + 1, C) to nine (tiles, C)."""

    def split(d: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        size = d.shape[axis]
        d0, d1, d2 = (lax.slice_in_dim(d, i, size - 2 + i, 2, axis) for i in range(3))
        return d0 - d1, d1, d1 - d2

    return [d.reshape(-1, d.shape[-1]) for rows in split(cells, 1) for d in split(rows, 2)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _combine_cells(products: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """Nine (tiles, C) to cells of `shape` (N, H + 1, W + 1, C), the transpose of `_split_cells`.

    Written out: what autodiff makes of strided slices, a dilated pad for each and their sum, is slow.
    """
    n, h, w, c = shape

    def combine(a: jax.Array, b: jax.Array, c: jax.Array, axis: int) -> jax.Array:
        even = _pad(a, axis, 0, 1) - _pad(c, axis, 1, 0)
        odd = _pad(b - a + c, axis, 0, 1)
        cells = jnp.stack([even, odd], axis + 1)  # the last odd one is beyond the image
        return cells.reshape(*a.shape[:axis], -1, *a.shape[axis + 1 :])

    products = [p.reshape(n, h // 2, w // 2, c) for p in products]
    rows = [combine(*products[i : i + 3], axis=2) for i in (0, 3, 6)]
    return combine(*rows, axis=1)[:, :h, :w]


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    return jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])


_split_cells.defvjp(
    lambda cells: (_split_cells(cells), cells.shape), lambda shape, products: (_combine_cells(products, shape),)
)
_combine_cells.defvjp(
    lambda products, shape: (_combine_cells(products, shape), None),
    lambda shape, _, cells: (_split_cells(cells),),
)


def _combine_outputs(products: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """Nine (tiles, F) to outputs of `shape` (N, H, W, F)."""
    n, h, w, f = shape

    def combine(a: jax.Array, b: jax.Array, c: jax.Array, axis: int) -> jax.Array:
        return jnp.stack([a + b, b - c], axis)

    products = [p.reshape(n, h // 2, w // 2, f) for p in products]
    columns = [combine(*products[i : i + 3], axis=3) for i in (0, 3, 6)]
    return combine(*columns, axis=2).reshape(shape)


def _split_outputs(x: jax.Array) -> list[jax.Array]:
    """Outputs (N, H, W, F) to nine (tiles, F), the transpose of `_combine_outputs`."""
    n, h, w, f = x.shape

    def split(y: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        y0, y1 = (lax.index_in_dim(y, i, axis, keepdims=False) for i in (0, 1))
        return y0, y0 + y1, -y1

    tiles = x.reshape(n, h // 2, 2, w // 2, 2, f)
    return [y.reshape(-1, f) for rows in split(tiles, 2) for y in split(rows, 3)]
