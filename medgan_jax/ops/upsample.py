"""Upsampling before a convolution and average pooling after one, each merged with it into one 4x4 kernel of stride 2.

Both pairs are linear, so each is a single convolution, at the speed of `ops.winograd`: an upsampling then a convolution
is a transposed convolution, and a 3x3 convolution then an average of 2x2 pixels is a convolution with stride 2 (4
multiplications instead of 9). The functions here compute those kernels, (4, 4, C_in, C_out); `linear` applies them,
and those of other layers.

Upsampling first avoids the checkerboard pattern of a transposed convolution, whose outputs at even and odd places come
from different taps (Odena et al. 2016, doi:10.23915/distill.00003).
"""

import jax
import jax.numpy as jnp

from medgan_jax.ops.winograd import convolution_3x3, downsampling_convolution, upsampling_convolution

UPSAMPLING_SIZES = {"transposed": 4, "nearest": 3, "bilinear": 2}  # size of the learnt kernel, by kind of upsampling


def upsampling_kernel(kernel: jax.Array, upsample: str) -> jax.Array:
    """The kernel for `upsampling_convolution` that upsamples by two and then convolves with `kernel`.

    Args:
      kernel: (S, S, C_in, C_out), S of `UPSAMPLING_SIZES`.
      upsample: "nearest": doubles each pixel, then correlates, with zeros beyond the edge; "bilinear": puts the mean of
        two neighbours between them, then correlates with a 2x2 kernel; "transposed": returns the kernel as it is.

    Returns:
      (4, 4, C_in, C_out). For the first two, a constant image stays constant, except at the edges.

    Raises:
      ValueError: the kernel has another size, or `upsample` is unknown.
    """
    if upsample not in UPSAMPLING_SIZES or kernel.shape[:2] != 2 * (UPSAMPLING_SIZES[upsample],):
        raise ValueError(f"upsample={upsample!r} has no kernel of shape {kernel.shape}; sizes are {UPSAMPLING_SIZES}")
    if upsample == "transposed":
        return kernel
    weights = {"nearest": (1.0, 1.0), "bilinear": (0.5, 1.0, 0.5)}[upsample]
    return _composed(kernel[::-1, ::-1], weights)  # reversed: a transposed convolution does not mirror its taps


def average_pooling_kernel(kernel: jax.Array) -> jax.Array:
    """The kernel for `downsampling_convolution` that convolves, 3x3, and then averages 2x2 pixels.

    Args:
      kernel: (3, 3, C_in, C_out).

    Returns:
      (4, 4, C_in, C_out).
    """
    return _composed(kernel / 4, (1.0, 1.0))


def linear(x: jax.Array, kernel: jax.Array, kind: str) -> jax.Array:
    """A linear layer without bias, in the type of `x`.

    Args:
      x: (..., C_in); for a convolution (N, H, W, C_in), H and W even for "down".
      kernel: (C_in, C_out) for the kind "dense", else (3, 3, C_in, C_out).
      kind: "dense": over channels; "same": convolves; "up": doubles the resolution by nearest neighbours, then
        convolves; "down": convolves, then averages 2x2 pixels.

    Returns:
      (..., C_out).

    Raises:
      ValueError: `kind` is unknown.
    """
    match kind:
        case "dense":
            return x @ kernel.astype(x.dtype)
        case "same":
            return convolution_3x3(x, kernel.astype(x.dtype))
        case "up":
            return upsampling_convolution(x, upsampling_kernel(kernel, "nearest").astype(x.dtype))
        case "down":
            return downsampling_convolution(x, average_pooling_kernel(kernel).astype(x.dtype))
    raise ValueError(f"unknown kind of layer: {kind!r}")


def _composed(kernel: jax.Array, weights: tuple[float, ...]) -> jax.Array:
    """The full convolution of (S, S, C, F) with the outer product of `weights`: (4, 4, C, F), S + len(weights) = 5."""
    for axis in (0, 1):
        room = 4 - kernel.shape[axis]
        moved = [jnp.pad(kernel, [(i, room - i) if a == axis else (0, 0) for a in range(4)]) for i in range(room + 1)]
        kernel = sum((w * k for w, k in zip(weights, moved, strict=True)), start=jnp.zeros_like(moved[0]))
    return kernel
