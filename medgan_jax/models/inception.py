"""Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567) up to its pooled features, as FID takes them.

This is the network of `pt_inception-2015-12-05-6726825d.pth`, the weights of TensorFlow's graph of 2015-12-05 on which
FID was introduced (Heusel et al. 2017, arXiv:1706.08500), ported to PyTorch. It differs from torchvision's Inception-v3
in that average pools leave their padding out of the mean, and the last block pools by the maximum.

An FID belongs to its features: those of another network, or of images resized in another way, give other numbers
(Parmar et al. 2022, arXiv:2104.11222). Here images are resized as that port's users do, bilinearly without antialiasing
and with half-pixel centres. TensorFlow's graph has no half-pixel centres, "clean" FID is antialiased bicubic; images
of 299 px are spared the difference. Blocks and layers have the published names. Layout NHWC.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medgan_jax.images import unit_to_signed
from medgan_jax.torch_files import checked_array, read_arrays

IMAGE_SIZE = 299

_EPSILON = 1e-3  # of batch normalisation
_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")


def _unit(
    x: jax.Array, name: str, features: int, size: int | tuple[int, int], *, stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Convolution, batch normalisation, which is folded into it, and ReLU."""
    size = (size, size) if isinstance(size, int) else size
    # All of float32's digits, so that the features are the same on every kind of device.
    precision = jax.lax.Precision.HIGHEST
    none = nn.initializers.zeros  # weights are always read
    return nn.relu(nn.Conv(features, size, stride, padding, precision=precision, kernel_init=none, name=name)(x))


def _branch(x: jax.Array, *units: tuple[str, int, int | tuple[int, int]], halve: bool = False) -> jax.Array:
    """Units one after the other, each (name, features, kernel size); `halve`: the last goes in steps of two."""
    for unit in units[:-1] if halve else units:
        x = _unit(x, *unit)
    return _unit(x, *units[-1], stride=2, padding="VALID") if halve else x


_average_pool = functools.partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)
_max_pool = functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
_halve = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


class _Mixed(nn.Module):
    """Branches side by side: `branches` makes them, from the input and `options`."""

    branches: Callable[..., list[jax.Array]]
    options: tuple = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate(self.branches(x, *self.options), axis=-1)


def _at_35(x: jax.Array, pool_features: int) -> list[jax.Array]:
    """At 35 x 35 pixels, with a 5x5 kernel and two of 3x3."""
    return [
        _branch(x, ("branch1x1", 64, 1)),
        _branch(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        _branch(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        _branch(_average_pool(x), ("branch_pool", pool_features, 1)),
    ]


def _from_35_to_17(x: jax.Array) -> list[jax.Array]:
    return [
        _branch(x, ("branch3x3", 384, 3), halve=True),
        _branch(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3), halve=True),
        _halve(x),
    ]


def _at_17(x: jax.Array, inner: int) -> list[jax.Array]:
    """At 17 x 17 pixels, with 7x7 kernels taken apart into rows and columns; `inner` features between them."""
    row, column = (1, 7), (7, 1)
    return [
        _branch(x, ("branch1x1", 192, 1)),
        _branch(x, ("branch7x7_1", inner, 1), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)),
        _branch(
            x,
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, column),
            ("branch7x7dbl_3", inner, row),
            ("branch7x7dbl_4", inner, column),
            ("branch7x7dbl_5", 192, row),
        ),
        _branch(_average_pool(x), ("branch_pool", 192, 1)),
    ]


def _from_17_to_8(x: jax.Array) -> list[jax.Array]:
    units = ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
    return [
        _branch(x, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3), halve=True),
        _branch(x, *units, ("branch7x7x3_4", 192, 3), halve=True),
        _halve(x),
    ]


def _at_8(x: jax.Array, pool: Callable[[jax.Array], jax.Array]) -> list[jax.Array]:
    """At 8 x 8 pixels, with 3x3 kernels as a row and a column side by side."""
    single = _branch(x, ("branch3x3_1", 384, 1))
    double = _branch(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    return [
        _branch(x, ("branch1x1", 320, 1)),
        _branch(single, ("branch3x3_2a", 384, (1, 3))),
        _branch(single, ("branch3x3_2b", 384, (3, 1))),
        _branch(double, ("branch3x3dbl_3a", 384, (1, 3))),
        _branch(double, ("branch3x3dbl_3b", 384, (3, 1))),
        _branch(pool(x), ("branch_pool", 192, 1)),
    ]


_BLOCKS: tuple[tuple[str, Callable[..., list[jax.Array]], *tuple[Any, ...]], ...] = (
    ("Mixed_5b", _at_35, 32), ("Mixed_5c", _at_35, 64), ("Mixed_5d", _at_35, 64), ("Mixed_6a", _from_35_to_17),
    ("Mixed_6b", _at_17, 128), ("Mixed_6c", _at_17, 160), ("Mixed_6d", _at_17, 160), ("Mixed_6e", _at_17, 192),
    ("Mixed_7a", _from_17_to_8), ("Mixed_7b", _at_8, _average_pool), ("Mixed_7c", _at_8, _max_pool),
)  # fmt: skip


class InceptionFeatures(nn.Module):
    """Images to the features of which FID compares means and covariances; at inference only."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Float images (N, H, W, 1 or 3) in [0, 1], grey as three equal channels, to (N, 2048) float32, at least 0.

        Raises ValueError when the images are not of that shape or type.
        """
        if images.ndim != 4 or images.shape[3] not in (1, 3) or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"takes floating images (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
        number, _, _, channels = images.shape
        x = images.astype(jnp.float32)
        x = jax.image.resize(x, (number, IMAGE_SIZE, IMAGE_SIZE, channels), "linear", antialias=False)
        x = unit_to_signed(jnp.broadcast_to(x, (*x.shape[:3], 3)))
        x = _unit(x, "Conv2d_1a_3x3", 32, 3, stride=2, padding="VALID")
        x = _unit(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = _unit(x, "Conv2d_2b_3x3", 64, 3)
        x = _halve(x)
        x = _unit(x, "Conv2d_3b_1x1", 80, 1)
        x = _unit(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
        x = _halve(x)
        for name, branches, *options in _BLOCKS:
            x = _Mixed(branches, tuple(options), name=name)(x)
        return x.mean((1, 2))


@functools.cache
def _kernel_shapes() -> dict[tuple[str, ...], tuple[int, int, int, int]]:
    """Height, width, inputs and outputs of each convolution, by its place in the variables."""
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    params = jax.eval_shape(InceptionFeatures().init, jax.random.key(0), images)["params"]
    leaves = traverse_util.flatten_dict(params).items()
    return {tuple(layer): leaf.shape for (*layer, kind), leaf in leaves if kind == "kernel"}


def load_inception(path: Path) -> dict[str, dict]:
    """Variables of `InceptionFeatures`, numpy float32, with each batch normalisation folded into its convolution.

    Args:
      path: a state dict of PyTorch, such as the published file, or an `.npz` with the same names, such as
        `Mixed_5b.branch1x1.conv.weight` and `Mixed_5b.branch1x1.bn.running_mean`. Names beyond those are left aside.

    Raises:
      UserError: the file cannot be read, or an array is missing, of another shape, or not finite.
    """
    remedy = "give the Inception-v3 weights of FID, pt_inception-2015-12-05-6726825d.pth"
    checked = functools.partial(checked_array, read_arrays(path, remedy=remedy), path=path, remedy=remedy)
    params = {}
    for layer, (height, width, inputs, outputs) in _kernel_shapes().items():
        name = ".".join(layer)
        weight = checked(f"{name}.conv.weight", (outputs, inputs, height, width))
        scale, shift, mean, variance = (checked(f"{name}.bn.{array}", (outputs,)) for array in _NORM_ARRAYS)
        scale = scale / np.sqrt(variance + _EPSILON)
        params[*layer, "kernel"] = (weight.transpose(2, 3, 1, 0) * scale).astype(np.float32)
        params[*layer, "bias"] = (shift - mean * scale).astype(np.float32)
    return {"params": traverse_util.unflatten_dict(params)}
