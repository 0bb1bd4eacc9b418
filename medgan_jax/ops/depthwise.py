"""Depthwise convolution, each channel with a kernel of its own, in two lowerings.

Layout: images (N, H, W, C), kernel (k, k, C), any float type. Padding is TensorFlow's "SAME": the output is of size
ceil(H / stride), and where the padding is odd, as it is for an even size at stride 2, the last side has one more.

On GPU and TPU the native grouped convolution is the fast lowering. XLA's CPU backend is slow at it and at its
gradients. There the same sum is written as k * k shifted products. What autodiff makes of those is slow too, a dilated
pad for each, so the gradients are written by hand.

Convolving is linear in the image and in the kernel: <y, convolution(x, kernel)> is a product of three. Its gradients to
image and kernel are products of the other two alike, so the three functions below are each other's gradients, and
gradients (reverse mode) of any order, such as those of a penalty on a gradient, take the fast way.

Lowerings: "native"; "shifted"; "auto": native on GPU and TPU, shifted on a CPU.
"""

import functools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

LOWERING = "auto"  # of every convolution that is not given one; tests set it


def depthwise_convolution(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, lowering: str | None = None
) -> jax.Array:
    """Convolves each channel with its own k x k kernel (no tap is mirrored), with "SAME" padding.

    Args:
      x: images (N, H, W, C).
      kernel: (k, k, C).
      stride: 1 or more.
      lowering: see the module; `LOWERING` by default.

    Returns:
      (N, ceil(H / stride), ceil(W / stride), C).
    """
    lowering = lowering or LOWERING
    if lowering not in ("auto", "native", "shifted"):
        raise ValueError(f"lowering must be auto, native or shifted, not {lowering!r}")
    if lowering == "shifted" or (lowering == "auto" and jax.default_backend() == "cpu"):
        exact = jnp.promote_types(x.dtype, jnp.float32)  # to sum in, as the native one does
        return _convolution(x.astype(exact), kernel.astype(exact), stride).astype(x.dtype)
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _padding(size: int, taps: int, stride: int) -> tuple[int, int]:
    """Pixels before and after one dimension of an image."""
    total = max((-(-size // stride) - 1) * stride + taps - size, 0)
    return total // 2, total - total // 2


def _shifts(x: jax.Array, taps: int, stride: int) -> Iterator[tuple[int, int, jax.Array]]:
    """For tap (i, j) of the kernel, the pixel that it meets for each output: (N, ceil(H / s), ceil(W / s), C)."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), _padding(h, taps, stride), _padding(w, taps, stride), (0, 0)))
    h, w = ((-(-size // stride) - 1) * stride + 1 for size in (h, w))
    for i in range(taps):
        for j in range(taps):
            yield i, j, padded[:, i : i + h : stride, j : j + w : stride]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    factors = kernel[:, :, None, None, None]
    return functools.reduce(operator.add, (pixels * factors[i, j] for i, j, pixels in _shifts(x, len(kernel), stride)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _to_image(y: jax.Array, kernel: jax.Array, stride: int, size: tuple[int, int]) -> jax.Array:
    """The gradient to the image, of height and width `size`, from that to the output.

    Pixel s q + a, counted from the padding's edge, has met taps a, a + s, a + 2 s, ... in the outputs q, q - 1, ...
    """
    n, _, _, c = y.shape
    taps, factors = len(kernel), kernel[:, :, None, None, None]
    reach = (taps - 1) // stride
    padded = jnp.pad(y, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    h, w = (length - reach for length in padded.shape[1:3])

    def phase(a: int, b: int) -> jax.Array:
        terms = [
            padded[:, reach - i : reach - i + h, reach - j : reach - j + w] * factors[a + stride * i, b + stride * j]
            for i in range(len(range(a, taps, stride)))
            for j in range(len(range(b, taps, stride)))
        ]
        return functools.reduce(operator.add, terms or [jnp.zeros((n, h, w, c), y.dtype)])

    rows = [jnp.stack([phase(a, b) for b in range(stride)], 3) for a in range(stride)]
    pixels = jnp.stack(rows, 2).reshape(n, stride * h, stride * w, c)
    (top, _), (left, _) = (_padding(length, taps, stride) for length in size)
    return pixels[:, top : top + size[0], left : left + size[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _to_kernel(x: jax.Array, y: jax.Array, stride: int, taps: int) -> jax.Array:
    """The gradient to the kernel, from the image and the gradient to the output.

    Image by image, for the products of one stay in the processor's cache; summed by a matrix product, for XLA sums over
    all but the last axis one number at a time.
    """

    def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        image, y = pair
        ones = jnp.ones((1, y.size // y.shape[-1]), y.dtype)
        sums = [ones @ (pixels[0] * y).reshape(ones.size, -1) for _, _, pixels in _shifts(image[None], taps, stride)]
        return total + jnp.concatenate(sums), None

    total, _ = lax.scan(add, jnp.zeros((taps * taps, x.shape[-1]), x.dtype), (x, y))
    return total.reshape(taps, taps, -1)


_convolution.defvjp(
    lambda x, kernel, stride: (_convolution(x, kernel, stride), (x, kernel)),
    lambda stride, saved, y: (
        _to_image(y, saved[1], stride, saved[0].shape[1:3]),
        _to_kernel(saved[0], y, stride, len(saved[1])),
    ),
)
_to_image.defvjp(
    lambda y, kernel, stride, size: (_to_image(y, kernel, stride, size), (y, kernel)),
    lambda stride, _, saved, x: (_convolution(x, saved[1], stride), _to_kernel(x, saved[0], stride, len(saved[1]))),
)
_to_kernel.defvjp(
    lambda x, y, stride, taps: (_to_kernel(x, y, stride, taps), (x, y)),
    lambda stride, _, saved, kernel: (
        _to_image(saved[1], kernel, stride, saved[0].shape[1:3]),
        _convolution(saved[0], kernel, stride),
    ),
)
