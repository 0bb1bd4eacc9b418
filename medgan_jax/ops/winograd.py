"""4x4 convolutions with stride 2, down and up (transposed), and 3x3 ones with stride 1, each in several lowerings.

Layout: images (N, H, W, C), kernels (k, k, C_in, C_out), any float type; padding 1. Kernels follow PyTorch's convention
in both directions: `down` correlates (output i reads inputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3) and `up` is its
transpose (input i writes outputs 2i - 1 ... 2i + 2 with kernel taps 0 ... 3; no tap is mirrored). So a weight of
`torch.nn.Conv2d` or `ConvTranspose2d` only needs its axes transposed.

On GPU and TPU the native convolution is the fast lowering. XLA's CPU backend is slow at strided and dilated
convolutions and at the gradients of all. There the same sums are written as matrix products between cheap
rearrangements. Seen as cells of 2x2 pixels, both strided convolutions have a 2x2 kernel and stride 1. So Winograd's
minimal filtering F(2x2, 2x2) applies (Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308): 9 multiplications instead of
16; and F(2x2, 3x3) to the others: 16 instead of 36. Its transforms of images only add and subtract, so the rounding
stays that of float32.

Transformed, images are 2 to 4 times as large. Where they would leave the processor's cache, a few images at a time are
transformed, multiplied and transformed back. For the same reason gradients are written by hand and transform images
again. As in `ops.depthwise`, a convolution is linear in image and kernel, so that the functions here are each other's
gradients, and gradients (reverse mode) of any order take the fast way.

Lowerings: "native"; "matmul", one matrix product; "winograd", for even output (down) or input (up,
3x3) sizes; "auto": native on GPU and TPU, else the fastest at the layer's size.
"""

import functools
import itertools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

LOWERING = "auto"  # of every convolution that is not given one; tests set it
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Below so many tiles, or so few channels, transforming kernel and image costs more than the multiplications saved.
_MIN_TILES = 64
_MIN_CHANNELS = 16
_TAPS = tuple(itertools.product(range(3), range(3)))  # of a 3x3 kernel
_CACHE = 12 * 2**20  # bytes of tiles, of images that are worked on at a time


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
    match _chosen(lowering, n, h, w, 4 * c, f):
        case "native":
            return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)
        case "matmul":
            return (_patches(_to_cells(x)) @ _cell_kernel(kernel).reshape(-1, f)).reshape(n, h, w, f)
    return _down(x, kernel)


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
    match _chosen(lowering, n, h, w, 4 * f, c):
        case "native":
            return lax.conv_general_dilated(
                x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_DIMENSIONS
            )
        case "matmul":
            cells = jax.ShapeDtypeStruct((n, h + 1, w + 1, 4 * f), x.dtype)
            products = x.reshape(-1, c) @ _cell_kernel(kernel.swapaxes(2, 3)).reshape(-1, c).T
            return _to_pixels(*jax.linear_transpose(_patches, cells)(products))
    return _up(x, kernel)


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
    match _chosen(lowering, n, h, w, c, f):
        case "winograd":
            return _same(x, kernel)
        case "matmul" if f < c:
            return _products_first(x, kernel)
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)


def _to_cells(x: jax.Array) -> jax.Array:
    """(N, 2 H, 2 W, C) to cells (N, H + 1, W + 1, 4 C), with the padding."""
    n, h, w, c = x.shape
    cells = _padded(x).reshape(n, h // 2 + 1, 2, w // 2 + 1, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(n, h // 2 + 1, w // 2 + 1, 4 * c)


def _to_pixels(cells: jax.Array) -> jax.Array:
    """The transpose of `_to_cells`."""
    n, h, w, c = cells.shape
    pixels = cells.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(n, 2 * h, 2 * w, c // 4)[:, 1:-1, 1:-1]


def _cell_kernel(kernel: jax.Array) -> jax.Array:
    """(4, 4, C, F), of pixels, to (2, 2, 4 C, F), of cells."""
    _, _, c, f = kernel.shape
    return kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, f)


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


def _images_at_a_time(number: int, numbers: int) -> int:
    """Of `number`, if each is transformed to so many numbers: as many as fit into the cache, and divide them.

    All of them where a batch may be divided among devices, which a loop over images would undo.
    """
    if jax.device_count() > 1:
        return number
    most = max(_CACHE // (4 * numbers), 1)
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= most)


def _for_images(function: Callable[[jax.Array], jax.Array], x: jax.Array, numbers: int) -> jax.Array:
    """`function` of images (N, ...), to (N, ...), some at a time."""
    size = _images_at_a_time(len(x), numbers)
    if size == len(x):
        return function(x)
    y = lax.map(function, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


def _sum_over_images(
    products: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, y: jax.Array, numbers: int
) -> jax.Array:
    """`products`, summed over images (N, ...) and outputs (N, ...), of some at a time."""
    size = _images_at_a_time(len(x), numbers)
    if size == len(x):
        return products(x, y)
    pairs = [a.reshape(-1, size, *a.shape[1:]) for a in (x, y)]
    none = jax.eval_shape(products, *(pair[0] for pair in pairs))
    total, _ = lax.scan(
        lambda total, pair: (total + products(*pair), None), jnp.zeros(none.shape, none.dtype), tuple(pairs)
    )
    return total


# F(2x2, 2x2). In one dimension the outputs y0 = d0 g0 + d1 g1 and y1 = d1 g0 + d2 g1 come from three products,
# a = (d0 - d1) g0, b = d1 (g0 + g1), c = (d1 - d2) g1, as y0 = a + b, y1 = b - c. In two, from nine: aa, ab, ... cc.
# The transposed convolution runs the same way backwards: what splits outputs is the transpose of what combines them.


@jax.custom_vjp
def _down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    factors = _split_kernel(_cell_kernel(kernel))

    def convolve(x: jax.Array) -> jax.Array:
        products = [d @ g for d, g in zip(_split_cells(_to_cells(x)), factors, strict=True)]
        return _combine_outputs(products, (len(x), x.shape[1] // 2, x.shape[2] // 2, kernel.shape[-1]))

    return _for_images(convolve, x, _tile_numbers(x, kernel.shape[-1]))


@jax.custom_vjp
def _up(y: jax.Array, kernel: jax.Array) -> jax.Array:
    factors = _split_kernel(_cell_kernel(kernel.swapaxes(2, 3)).swapaxes(2, 3))
    n, h, w, _ = y.shape

    def convolve(y: jax.Array) -> jax.Array:
        products = [d @ g for d, g in zip(_split_outputs(y), factors, strict=True)]
        return _to_pixels(_combine_cells(products, (len(y), h + 1, w + 1, 4 * kernel.shape[-1])))

    return _for_images(convolve, y, 9 * h * w // 4 * (4 * kernel.shape[-1] + y.shape[-1]))


@jax.custom_vjp
def _strided_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient to the kernel of `_down`, from the image and the gradient to the output."""

    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.stack([d.T @ e for d, e in zip(_split_cells(_to_cells(x)), _split_outputs(y), strict=True)])

    kernel = _combine_kernel(_sum_over_images(products, x, y, _tile_numbers(x, y.shape[-1])))
    c, f = x.shape[-1], y.shape[-1]
    return kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, c, f)


def _tile_numbers(x: jax.Array, f: int) -> int:
    """How many there are in the tiles of one image, and of its output with F channels."""
    _, h, w, c = x.shape
    return 9 * h * w // 16 * (4 * c + f)


_down.defvjp(
    lambda x, kernel: (_down(x, kernel), (x, kernel)),
    lambda saved, y: (_up(y, saved[1].swapaxes(2, 3)), _strided_kernel(saved[0], y)),
)
_up.defvjp(
    lambda y, kernel: (_up(y, kernel), (y, kernel)),
    lambda saved, x: (_down(x, saved[1].swapaxes(2, 3)), _strided_kernel(x, saved[0]).swapaxes(2, 3)),
)
_strided_kernel.defvjp(
    lambda x, y: (_strided_kernel(x, y), (x, y)),
    lambda saved, kernel: (_up(saved[1], kernel.swapaxes(2, 3)), _down(saved[0], kernel)),
)


def _split_kernel(kernel: jax.Array) -> list[jax.Array]:
    """(2, 2, C, F) to nine (C, F)."""

    def split(g0: jax.Array, g1: jax.Array) -> tuple[jax.Array, ...]:
        return g0, g0 + g1, g1

    return [g for rows in split(*kernel) for g in split(*rows)]


def _combine_kernel(products: jax.Array) -> jax.Array:
    """(9, C, F) to (2, 2, C, F), the transpose of `_split_kernel`."""

    def combine(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.stack([a + b, b + c])

    return combine(*(combine(*products[i : i + 3]) for i in (0, 3, 6)))


def _split_cells(cells: jax.Array) -> list[jax.Array]:
    """(N, H + 1, W + 1, C) to nine (tiles, C)."""

    def split(d: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        size = d.shape[axis]
        d0, d1, d2 = (lax.slice_in_dim(d, i, size - 2 + i, 2, axis) for i in range(3))
        return d0 - d1, d1, d1 - d2

    return [d.reshape(-1, d.shape[-1]) for rows in split(cells, 1) for d in split(rows, 2)]


def _combine_cells(products: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """Nine (tiles, C) to cells of `shape` (N, H + 1, W + 1, C), the transpose of `_split_cells`."""
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

    def split(y0: jax.Array, y1: jax.Array) -> tuple[jax.Array, ...]:
        return y0, y0 + y1, -y1

    return _split_pairs(x, split)


def _split_pairs(x: jax.Array, split: Callable[..., tuple[jax.Array, ...]]) -> list[jax.Array]:
    """`split` of every two rows of outputs (N, H, W, F), then of every two columns: (tiles, F) each."""
    n, h, w, f = x.shape
    pairs = x.reshape(n, h // 2, 2, w // 2, 2, f)
    rows = split(pairs[:, :, 0], pairs[:, :, 1])
    return [y.reshape(-1, f) for row in rows for y in split(row[:, :, :, 0], row[:, :, :, 1])]


# F(2x2, 3x3). In one dimension the outputs y0 = d0 g0 + d1 g1 + d2 g2 and y1 = d1 g0 + d2 g1 + d3 g2 come from four
# products, a = (d0 - d2) g0, b = (d1 + d2) (g0 + g1 + g2) / 2, c = (d2 - d1) (g0 - g1 + g2) / 2, d = (d1 - d3) g2, as
# y0 = a + b + c, y1 = b - c - d. In two, from 16. Tiles of 4x4 pixels overlap by 2.


@jax.custom_vjp
def _same(x: jax.Array, kernel: jax.Array) -> jax.Array:
    factors = _split_3x3_kernel(kernel)

    def convolve(x: jax.Array) -> jax.Array:
        products = [d @ g for d, g in zip(_split_tiles(_padded(x)), factors, strict=True)]
        return _combine_tiles(products, (*x.shape[:3], kernel.shape[-1]))

    return _for_images(convolve, x, 4 * x.shape[1] * x.shape[2] * sum(kernel.shape[2:]))


@jax.custom_vjp
def _same_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient to the kernel of `_same`, from the image and the gradient to the output."""

    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.stack([d.T @ e for d, e in zip(_split_tiles(_padded(x)), _split_tile_outputs(y), strict=True)])

    numbers = 4 * x.shape[1] * x.shape[2] * (x.shape[-1] + y.shape[-1])
    return _combine_3x3_kernel(_sum_over_images(products, x, y, numbers))


def _mirrored(kernel: jax.Array) -> jax.Array:
    """The kernel that a 3x3 convolution's gradient to the image is a convolution with."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


_same.defvjp(
    lambda x, kernel: (_same(x, kernel), (x, kernel)),
    lambda saved, y: (_same(y, _mirrored(saved[1])), _same_kernel(saved[0], y)),
)
_same_kernel.defvjp(
    lambda x, y: (_same_kernel(x, y), (x, y)),
    lambda saved, kernel: (_same(saved[1], _mirrored(kernel)), _same(saved[0], kernel)),
)


def _split_3x3_kernel(kernel: jax.Array) -> list[jax.Array]:
    """(3, 3, C, F) to 16 (C, F)."""

    def split(g0: jax.Array, g1: jax.Array, g2: jax.Array) -> tuple[jax.Array, ...]:
        return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2

    return [g for rows in split(*kernel) for g in split(*rows)]


def _combine_3x3_kernel(products: jax.Array) -> jax.Array:
    """(16, C, F) to (3, 3, C, F), the transpose of `_split_3x3_kernel`."""

    def combine(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.stack([a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d])

    return combine(*(combine(*products[i : i + 4]) for i in range(0, 16, 4)))


def _split_tiles(padded: jax.Array) -> list[jax.Array]:
    """(N, H + 2, W + 2, C) to 16 (tiles, C)."""

    def split(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        size = x.shape[axis]
        d0, d1, d2, d3 = (lax.slice_in_dim(x, i, size - 2 + i if i < 2 else size - 3 + i, 2, axis) for i in range(4))
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    return [d.reshape(-1, d.shape[-1]) for rows in split(padded, 1) for d in split(rows, 2)]


def _combine_tiles(products: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """16 (tiles, F) to outputs of `shape` (N, H, W, F)."""
    n, h, w, f = shape

    def combine(axis: int, a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.stack([a + b + c, b - c - d], axis)

    products = [p.reshape(n, h // 2, w // 2, f) for p in products]
    return combine(2, *(combine(3, *products[i : i + 4]) for i in range(0, 16, 4))).reshape(shape)


def _split_tile_outputs(y: jax.Array) -> list[jax.Array]:
    """Outputs (N, H, W, F) to 16 (tiles, F), the transpose of `_combine_tiles`."""

    def split(y0: jax.Array, y1: jax.Array) -> tuple[jax.Array, ...]:
        return y0, y0 + y1, y0 - y1, -y1

    return _split_pairs(y, split)
