"""4x4 convolutions with stride 2, down and up (transposed), and 3x3 ones with stride 1, each in several lowerings.

Layout: images (N, H, W, C), kernels (k, k, C_in, C_out), any float type; padding 1. Kernels follow PyTorch's convention
in both directions: `down` correlates (output i reads inputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3) and `up` is its
transpose (input i writes outputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3; no tap is mirrored). So a weight of
`torch.nn.Conv2d` or `ConvTranspose2d` only needs its axes transposed.

On GPU and TPU the native convolution is the fast lowering. XLA's CPU backend is slow at strided and dilated
convolutions and at the gradients of all. There the same sums are written as matrix products between cheap
rearrangements; their gradients are matrix products too. Seen as cells of 2x2 pixels, both strided convolutions have a
2x2 kernel and stride 1. So Winograd's minimal filtering F(2x2, 2x2) applies (Winograd 1980; Lavin & Gray 2016,
arXiv:1509.09308): 9 multiplications instead of 16; and F(2x2, 3x3) to the others: 16 instead of 36. Its transforms of
images only add and subtract, so the rounding stays that of float32.

Lowerings: "native"; "matmul", one matrix product; "winograd", for even output (down) or input (up, 3x3) sizes; "auto":
native on GPU and TPU, else the fastest at the layer's size.
"""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
from jax import lax

LOWERING = "auto"  # of every convolution that is not given one; tests set it
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Below so many tiles, or so few channels, transforming kernel and image costs more than the multiplications saved.
_MIN_TILES = 64
_MIN_CHANNELS = 16
_TAPS = tuple(itertools.product(range(3), range(3)))  # of a 3x3 kernel


def _chosen(lowering: str | None, n: int, h: int, w: int, c: int, f: int) -> str:
    """The lowering for (N, H + 1, W + 1, C) cells on one side and (N, H, W, F) pixels on the other."""
    lowering = lowering or LOWERING
    if lowering not in ("auto", "native", "matmul", "winograd"):
        raise ValueError(f"lowering must be auto, native, matmul or winograd, not {lowering!r}")
    if lowering != "auto":
        return lowering
    if jax.default_backend() != "cpu":
        return "native"
    return "winograd" if _is_worth_it(n, h, w, c, f) else "matmul"


def _is_worth_it(n: int, h: int, w: int, c: int, f: int) -> bool:
    return h % 2 == w % 2 == 0 and n * h * w // 4 >= _MIN_TILES and min(c, f) >= _MIN_CHANNELS


def downsampling_convolution(x: jax.Array, kernel: jax.Array, *, lowering: str | None = None) -> jax.Array:
    """Convolves with a 4x4 kernel, stride 2 and padding 1.

    Args:
      x: images (N, H, W, C_in), H and W even.
      kernel: (4, 4, C_in, C_out).
      lowering: see the module; `LOWERING` by default.

    Returns:
      (N, H / 2, W / 2, C_out).
    """
    n, h, w, c = x.shape
    h, w, f = h // 2, w // 2, kernel.shape[-1]
    lowering = _chosen(lowering, n, h, w, 4 * c, f)
    if lowering == "native":
        return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)
    cells = _padded(x).reshape(n, h + 1, 2, w + 1, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h + 1, w + 1, 4 * c)
    kernel = kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, f)
    if lowering == "matmul":
        return (_patches(cells) @ kernel.reshape(-1, f)).reshape(n, h, w, f)
    products = [d @ g for d, g in zip(_split_cells(cells), _split_kernel(kernel), strict=True)]
    return _combine_outputs(products, (n, h, w, f))


def upsampling_convolution(x: jax.Array, kernel: jax.Array, *, lowering: str | None = None) -> jax.Array:
    """Transposed convolution with a 4x4 kernel, stride 2 and padding 1.

    Args:
      x: images (N, H, W, C_in).
      kernel: (4, 4, C_in, C_out).
      lowering: see the module; `LOWERING` by default.

    Returns:
      (N, 2 H, 2 W, C_out).
    """
    n, h, w, c = x.shape
    f = kernel.shape[-1]
    lowering = _chosen(lowering, n, h, w, 4 * f, c)
    if lowering == "native":
        return lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_DIMENSIONS
        )
    kernel = kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * f)
    shape = (n, h + 1, w + 1, 4 * f)
    if lowering == "matmul":
        (cells,) = jax.linear_transpose(_patches, jax.ShapeDtypeStruct(shape, x.dtype))(
            x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)
        )
    else:
        products = [y @ g for y, g in zip(_split_outputs(x), _split_kernel(kernel), strict=True)]
        cells = _combine_cells(products, shape)
    pixels = cells.reshape(n, h + 1, w + 1, 2, 2, f).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(n, 2 * h + 2, 2 * w + 2, f)[:, 1:-1, 1:-1]


def convolution_3x3(x: jax.Array, kernel: jax.Array, *, lowering: str | None = None) -> jax.Array:
    """Convolves with a 3x3 kernel, stride 1 and padding 1.

    Args:
      x: images (N, H, W, C_in).
      kernel: (3, 3, C_in, C_out).
      lowering: see the module; `LOWERING` by default. "matmul" is "native" unless C_out is below C_in.

    Returns:
      (N, H, W, C_out).
    """
    n, h, w, c = x.shape
    f = kernel.shape[-1]
    lowering = _chosen(lowering, n, h, w, c, f)
    if lowering == "matmul" and f < c:
        return _products_first(x, kernel)
    if lowering != "winograd":
        return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)
    products = [d @ g for d, g in zip(_split_tiles(_padded(x)), _split_3x3_kernel(kernel), strict=True)]
    return _combine_tiles(products, (n, h, w, f))


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _patches(cells: jax.Array) -> jax.Array:
    """(N, H + 1, W + 1, C) to (N H W, 4 C), the 2x2 cells that each output sees."""
    _, h, w, c = cells.shape
    corners = [cells[:, i : h - 1 + i, j : w - 1 + j] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(corners, axis=-1).reshape(-1, 4 * c)


@jax.custom_vjp
def _products_first(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution to few channels: pixels times all taps, and of these products the sums."""
    n, h, w, c = x.shape
    products = _padded(x @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)).reshape(n, h + 2, w + 2, 3, 3, -1)
    return functools.reduce(operator.add, (products[:, i : i + h, j : j + w, i, j] for i, j in _TAPS))


def _products_first_backward(saved: tuple[jax.Array, jax.Array], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    _, h, w, c = x.shape
    padded = _padded(y)
    seen = jnp.concatenate([padded[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w] for i, j in _TAPS], axis=-1)
    kernel_grad = (x.reshape(-1, c).T @ seen.reshape(-1, seen.shape[-1])).reshape(c, 3, 3, -1).transpose(1, 2, 0, 3)
    return seen @ kernel.swapaxes(2, 3).reshape(-1, c), kernel_grad


_products_first.defvjp(lambda x, kernel: (_products_first(x, kernel), (x, kernel)), _products_first_backward)


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

    def combine(axis: int, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        even = _pad(a, axis, 0, 1) - _pad(c, axis, 1, 0)
        odd = _pad(b - a + c, axis, 0, 1)
        cells = jnp.stack([even, odd], axis + 1)  # the last odd one is beyond the image
        return cells.reshape(*a.shape[:axis], -1, *a.shape[axis + 1 :])

    products = [p.reshape(n, h // 2, w // 2, c) for p in products]
    rows = [combine(2, *products[i : i + 3]) for i in (0, 3, 6)]
    return combine(1, *rows)[:, :h, :w]


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

    def combine(axis: int, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.stack([a + b, b - c], axis)

    products = [p.reshape(n, h // 2, w // 2, f) for p in products]
    columns = [combine(3, *products[i : i + 3]) for i in (0, 3, 6)]
    return combine(2, *columns).reshape(shape)


def _split_outputs(x: jax.Array) -> list[jax.Array]:
    """Outputs (N, H, W, F) to nine (tiles, F), the transpose of `_combine_outputs`."""
    n, h, w, f = x.shape

    def split(y: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        y0, y1 = (lax.index_in_dim(y, i, axis, keepdims=False) for i in (0, 1))
        return y0, y0 + y1, -y1

    tiles = x.reshape(n, h // 2, 2, w // 2, 2, f)
    return [y.reshape(-1, f) for rows in split(tiles, 2) for y in split(rows, 3)]


# F(2x2, 3x3). In one dimension the outputs y0 = d0 g0 + d1 g1 + d2 g2 and y1 = d1 g0 + d2 g1 + d3 g2 come from four
# products, a = (d0 - d2) g0, b = (d1 + d2) (g0 + g1 + g2) / 2, c = (d2 - d1) (g0 - g1 + g2) / 2, d = (d1 - d3) g2, as
# y0 = a + b + c, y1 = b - c - d. In two, from 16. Tiles of 4x4 pixels overlap by 2.


def _split_3x3_kernel(kernel: jax.Array) -> list[jax.Array]:
    """(3, 3, C, F) to 16 (C, F)."""

    def split(g0: jax.Array, g1: jax.Array, g2: jax.Array) -> tuple[jax.Array, ...]:
        return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2

    return [g for rows in split(*kernel) for g in split(*rows)]


@jax.custom_vjp
def _split_tiles(padded: jax.Array) -> list[jax.Array]:
    """(N, H + 2, W + 2, C) to 16 (tiles, C)."""

    def split(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        size = x.shape[axis]
        d0, d1, d2, d3 = (lax.slice_in_dim(x, i, size - 2 + i if i < 2 else size - 3 + i, 2, axis) for i in range(4))
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    return [d.reshape(-1, d.shape[-1]) for rows in split(padded, 1) for d in split(rows, 2)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _merge_tiles(tiles: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """16 (tiles, C) to `shape` (N, H + 2, W + 2, C), the transpose of `_split_tiles`."""
    n, h, w, c = shape

    def merge(axis: int, a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
        even = _pad(a, axis, 0, 1) + _pad(b + c - a, axis, 1, 0)
        odd = _pad(b - c + d, axis, 0, 1) - _pad(d, axis, 1, 0)
        pixels = jnp.stack([even, odd], axis + 1)
        return pixels.reshape(*a.shape[:axis], -1, *a.shape[axis + 1 :])

    tiles = [t.reshape(n, h // 2 - 1, w // 2 - 1, c) for t in tiles]
    return merge(1, *(merge(2, *tiles[i : i + 4]) for i in range(0, 16, 4)))


_split_tiles.defvjp(
    lambda padded: (_split_tiles(padded), padded.shape), lambda shape, tiles: (_merge_tiles(tiles, shape),)
)
_merge_tiles.defvjp(lambda tiles, shape: (_merge_tiles(tiles, shape), None), lambda shape, _, x: (_split_tiles(x),))


def _combine_tiles(products: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """16 (tiles, F) to outputs of `shape` (N, H, W, F)."""
    n, h, w, f = shape

    def combine(axis: int, a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.stack([a + b + c, b - c - d], axis)

    products = [p.reshape(n, h // 2, w // 2, f) for p in products]
    return combine(2, *(combine(3, *products[i : i + 4]) for i in range(0, 16, 4))).reshape(shape)
