"""Converts PyTorch's state dicts of the published networks to our variables, and back.

The published classes keep one `Sequential` of bias-free convolutions, batch normalisations and activations. So an entry
is named by the position of its layer, such as `main.3.weight`; activations have a position and no entry. That is enough
to tell the architecture: in a generator the layer after the first convolution has entries, in a discriminator it has
none, and each convolution but the first and the last doubles or halves the resolution.

Others write the same networks with biases, with a 1x1 convolution as the generator's last layer, or with a `Sequential`
for each block. A bias before batch normalisation only shifts its mean, and is folded into that. A generator's last
layer keeps its bias; other biases are refused.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medgan_jax.errors import UserError, abbreviate, quoted
from medgan_jax.models.dcgan import Discriminator, Generator, doublings
from medgan_jax.ops.upsample import upsampling_kernel
from medgan_jax.torch_files import read_state_dicts

PREFIX = "main."  # the attribute in which the published classes keep their Sequential
_FEWEST, _MOST = 3, 8  # convolutions, at 16 and 512 px
_KERNEL = ("weight", "weight_orig")
_NORM = {  # PyTorch's name to our collection and name
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_AVERAGED = "n_averaged"  # counter of torch.optim.swa_utils.AveragedModel
_COUNTER = "num_batches_tracked"  # of forward passes in training; PyTorch computes nothing from it here
_PARAMETRIZED = {  # of torch.nn.utils.parametrizations.spectral_norm, and of torch.nn.utils.spectral_norm
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}
_NAME = re.compile(r"((?:[^.\d][^.]*\.)*)(\d{1,4}(?:\.\d{1,4})*)\.(.+)", re.DOTALL)
_COMPILED = "_orig_mod."  # what torch.compile puts into names
_TO_TORCH = {Generator: (2, 3, 0, 1), Discriminator: (3, 2, 0, 1)}  # axes of a kernel, ours (height, width, in, out)
_REMEDY = "give a generator or discriminator of DCGAN or SNGAN: one Sequential of 4x4 kernels, 16 to 512 px"
_NETWORK = re.compile(  # up to what a training usually calls one of its networks: "generator.", "model.netG_ema."
    r"((?:[^.]+\.)*?(?:[^.]*_)?(?:net_?)?(?:g|d|gen|dis|disc|generator|discriminator|critic)\d*(?:_[^.]*)?)\.", re.I
)


@dataclasses.dataclass(frozen=True)
class TorchNetwork:
    """A network found in a state dict."""

    module: Generator | Discriminator
    variables: dict[str, Any]  # numpy float32
    inputs: int  # the length of a generator's latents, or the channels of a discriminator's images
    key: str = ""  # where it is in its file; "" where that holds nothing else


def read_network(path: Path, *, key: str = "", kinds: tuple[type, ...] = (Generator, Discriminator)) -> TorchNetwork:
    """Reads a network from a file of state dicts, see `read_state_dicts`.

    Args:
      path: the file.
      key: which network of several: a key of the checkpoint, or how the names of its entries begin where one state dict
        holds several, as Lightning's does. "": the only one of the first of `kinds` that is there; of several
        generators, the moving average, the one with "ema" in its key.
      kinds: what is wanted, `Generator`, `Discriminator` or both.

    Raises:
      UserError: it cannot be read, holds anything but one of the networks, or more than one that `key` can mean.
    """
    found = _by_key(read_state_dicts(path))
    if key:
        chosen = [name for name in found if name == key] or [name for name in found if f".{key}." in f".{name}."]
        if len(chosen) != 1:
            there = f"give one of {_listed(found)}" if any(found) else "it holds one network, so leave --key out"
            raise UserError(f"{path}: --key={key} names no network there; {there}")
        return _converted_network(path, found, chosen[0])
    if len(found) == 1:
        return _converted_network(path, found, *found)
    modules = {name: _recognised(arrays) for name, arrays in found.items()}
    for kind in kinds:
        of_kind = [name for name, module in modules.items() if isinstance(module, kind)]
        chosen = of_kind if len(of_kind) < 2 else [name for name in of_kind if "ema" in name.lower()]
        if len(chosen) == 1:
            return _converted_network(path, found, chosen[0])
        if of_kind or None in modules.values():
            break
    raise UserError(f"{path}: holds {_listed(found)}; choose one: medgan import-torch {path} --key=KEY --out=FOLDER")


def _by_key(state_dicts: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Mapping[str, np.ndarray]]:
    """Parts the state dicts of modules that hold several networks: "state_dict.generator", "state_dict.discriminator".

    Only where names begin with at least two usual ones of networks: what is named otherwise may be blocks of one.
    """
    found: dict[str, Mapping[str, np.ndarray]] = {}
    for key, arrays in state_dicts.items():
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            if match := _NETWORK.match(name):
                parts.setdefault(match[1], {})[name] = array
        if len(parts) < 2:
            found[key] = arrays
        else:
            found |= {".".join(filter(None, (key, part))): entries for part, entries in parts.items()}
    return found


def _converted_network(path: Path, found: Mapping[str, Mapping[str, np.ndarray]], key: str) -> TorchNetwork:
    try:
        return dataclasses.replace(from_state_dict(found[key]), key=key)
    except ValueError as error:
        where = f"{path}, {key}" if key else str(path)
        raise UserError(f"{where}: {error}; {_REMEDY}") from error


def _recognised(arrays: Mapping[str, np.ndarray]) -> Generator | Discriminator | None:
    try:
        return from_state_dict(arrays).module
    except ValueError:
        return None


def _listed(found: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Such as "netG (a generator of 64 px), vgg (no network known here)"."""
    modules = {key: _recognised(arrays) for key, arrays in found.items()}
    texts = [f"{key} ({described(module) if module else 'no network known here'})" for key, module in modules.items()]
    return abbreviate(texts, 8)


def from_state_dict(arrays: Mapping[str, np.ndarray]) -> TorchNetwork:
    """Finds which network a state dict is of, by names and shapes alone, and converts it.

    A prefix that all names share, such as `main.` or DataParallel's `module.`, does not matter. Spectral norm may be
    that of `torch.nn.utils` or of its `parametrizations`; the latter improves its two vectors in the other order, so
    that in training it is half an iteration apart from ours, which a settled estimate does not show. A 1x1 last layer
    is taken to have no padding, which entries do not show: with some, images are the middle of ours.

    Raises:
      ValueError: it is another network, or entries are missing, surplus, of another shape, or no finite numbers. The
        message names the entry, and makes half a sentence.
    """
    names, prefix = _names(arrays)
    module, shape = _architecture({name: arrays[given].shape for name, given in names.items()}, names)
    entries = dict(_entries(module))
    means = {name: path for name, path in entries.items() if name.endswith("running_mean")}
    folded = {f"{int(name.partition('.')[0]) - 1}.bias": path for name, path in means.items()}
    for name, given in names.items():
        is_counter = name.endswith(_COUNTER) and name.replace(_COUNTER, "running_mean") in entries
        if name not in entries and name not in folded and not is_counter:
            raise ValueError(f"has the entry {quoted(given)}, and {described(module)} has none there")
    if lacking := [name for name in entries if name not in names]:
        raise ValueError(f"has no entry {quoted(prefix + lacking[0])}, and {described(module)} has one")
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), training=True))
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(like).items()}
    variables = {}
    for name, path in entries.items():
        variables[path] = _converted(names[name], arrays[names[name]], module, path, shapes)
    for name in folded.keys() & names.keys():
        path = folded[name]
        variables[path] = variables[path] - _converted(names[name], arrays[names[name]], module, path, shapes)
    return TorchNetwork(module, traverse_util.unflatten_dict(variables), shape[-1])


def to_state_dict(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables to the state dict of the published classes: the inverse of `from_state_dict`.

    Spectral norm is that of `torch.nn.utils.spectral_norm`. A generator that enlarges before it convolves becomes the
    one with transposed convolutions that draws the same.

    Returns:
      Name, such as `main.0.weight`, to array, float32 and contiguous, in PyTorch's order; with the counters
      `num_batches_tracked`, int64 and 0, which PyTorch needs and ignores.

    Raises:
      ValueError: the published classes have no such network. The message makes half a sentence.
    """
    if not isinstance(module, Generator | Discriminator) or module.num_classes:
        what = "class-conditional network" if type(module) in _TO_TORCH else type(module).__name__
        raise ValueError(f"holds a {what}, and the published classes of DCGAN and SNGAN have none")
    flat = traverse_util.flatten_dict(jax.device_get(variables))
    state = {}
    for name, path in _entries(module):
        array = np.asarray(flat[path], np.float32)
        if path[-1] == "kernel":
            if isinstance(module, Generator) and path[1] != "conv_0" and len(array) > 1:
                array = np.asarray(upsampling_kernel(jnp.asarray(array), module.upsample))
            array = array.transpose(_TO_TORCH[type(module)])
        elif path[-1] == "v":
            array = array.reshape(flat["params", path[1], "kernel"].shape[:3]).transpose(2, 0, 1).reshape(-1)
        state[PREFIX + name] = np.ascontiguousarray(array)
        if name.endswith("running_var"):
            state[PREFIX + name.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return state


def _entries(module: Generator | Discriminator) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Position and name of each entry in PyTorch's order, and the path of the same numbers in our variables."""
    generator = isinstance(module, Generator)
    last = doublings(module.image_size) + 1 + (generator and module.pointwise)
    position = 0
    for i in range(last + 1):
        if generator or not module.spectral_norm:
            yield f"{position}.weight", ("params", f"conv_{i}", "kernel")
            if generator and module.bias and i == last:
                yield f"{position}.bias", ("params", f"conv_{i}", "bias")
        else:
            yield f"{position}.weight_orig", ("params", f"conv_{i}", "kernel")
            for vector in "uv":
                yield f"{position}.weight_{vector}", ("spectral", f"conv_{i}", "spectral_norm", vector)
        normalised = i < last and (generator or (i > 0 and module.batch_norm))
        if normalised:
            for name, (collection, ours) in _NORM.items():
                yield f"{position + 1}.{name}", (collection, f"norm_{i}", ours)
        position += 3 if normalised else 2  # the activation is the last


def _names(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, str], str]:
    """Names without prefix and parametrization, such as "0.weight_orig", to those given; and the prefix."""
    names: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for given in arrays:
        if given == _AVERAGED:
            continue
        match = _NAME.fullmatch(given.replace(_COMPILED, ""))
        if not match:
            raise ValueError(f"its entry {quoted(given)} is of no layer of a Sequential")
        prefix, position, what = match.groups()
        prefixes.setdefault(prefix, given)
        if len(prefixes) > 1:
            one, other = prefixes.values()
            raise ValueError(f"its entries {quoted(one)} and {quoted(other)} are not of one Sequential")
        name = f"{position if '.' in position else int(position)}.{_PARAMETRIZED.get(what, what)}"
        if name in names:
            raise ValueError(f"its entries {quoted(names[name])} and {quoted(given)} are the same")
        names[name] = given
    nested = any(name.count(".") > 1 for name in names)
    return _flattened(names) if nested else names, next(iter(prefixes), "")


def _flattened(names: Mapping[str, str]) -> dict[str, str]:
    """Names of layers in blocks, such as "1.0.weight", as in one Sequential, with an activation after each."""
    layers: dict[tuple[int, ...], dict[str, str]] = {}
    for name, given in names.items():
        position, what = _NAME.fullmatch(name).groups()[1:]  # type: ignore[union-attr]
        entries = layers.setdefault(tuple(map(int, position.split("."))), {})
        if what in entries:
            raise ValueError(f"its entries {quoted(entries[what])} and {quoted(given)} are the same")
        entries[what] = given
    flat: dict[str, str] = {}
    next_position = 0
    for _, entries in sorted(layers.items()):
        is_norm = "running_mean" in entries
        position = next_position - 1 if is_norm else next_position
        next_position = position + 2
        flat |= {f"{position}.{what}": given for what, given in entries.items()}
    return flat


def _architecture(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> tuple[Generator | Discriminator, tuple[int, ...]]:
    """The network that entries of these shapes can only be of, if of any, and the shape of its input."""
    layers = [(int(position), what, f"{position}.{what}") for position, _, what in (n.partition(".") for n in shapes)]
    kernels = {position: name for position, what, name in layers if what in _KERNEL and len(shapes[name]) == 4}
    positions = {position for position, _, _ in layers}
    if not _FEWEST <= len(kernels) <= _MOST or 0 not in kernels:
        number = f"{len(kernels)} convolutions" if 0 in kernels or not kernels else "no convolution first"
        raise ValueError(f"has {number}, and a network of 16 to 512 px has {_FEWEST} to {_MOST}, one of them first")
    size, doubled = 2 ** (len(kernels) + 1), 2 ** (len(kernels) - 2)
    first, last = kernels[0], kernels[max(kernels)]
    if 0 in shapes[first]:
        raise ValueError(f"its entry {quoted(names[first])} is of shape {shapes[first]}, without numbers")
    generator = 1 in positions
    shown = last if generator else first
    channels = shapes[shown][1]
    if pointwise := generator and shapes[last][2:] == (1, 1):
        size //= 2
        if shapes[last][1] == shapes[sorted(kernels.items())[-2][1]][1]:  # of a Conv2d, (out, in, 1, 1)
            channels = shapes[last][0]
    if channels not in (1, 3):
        raise ValueError(
            f"its entry {quoted(names[shown])} is of shape {shapes[shown]}, for images of {channels} channels; "
            "only 1 and 3 are known"
        )
    if not generator:
        module = Discriminator(size, shapes[first][0], first.endswith("_orig"), batch_norm=3 in positions)
        return module, (1, size, size, channels)
    latent_dim, widest = shapes[first][:2]
    if widest % doubled:
        raise ValueError(
            f"its entry {quoted(names[first])} is of shape {shapes[first]}: {widest} feature maps cannot be halved "
            f"{len(kernels) - 2} times, as in a generator of {size} px"
        )
    bias = last.partition(".")[0] + ".bias" in shapes
    return Generator(size, channels, widest // doubled, bias=bias, pointwise=pointwise), (1, latent_dim)


def described(module: Generator | Discriminator) -> str:
    """Such as "a discriminator of 64 px with spectral norm"."""
    if isinstance(module, Generator):
        return f"a generator of {module.image_size} px" + " with a 1x1 last layer" * module.pointwise
    norms = ["with spectral norm"] * module.spectral_norm + ["without batch norm"] * (not module.batch_norm)
    return " ".join([f"a discriminator of {module.image_size} px", " and ".join(norms)]).strip()


def _converted(
    given: str,
    array: np.ndarray,
    module: Generator | Discriminator,
    path: tuple[str, ...],
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
) -> np.ndarray:
    """Checks one entry, and brings its axes into our order."""
    axes = _TO_TORCH[type(module)]
    shape = shapes[path]
    if path[-1] == "kernel":
        shape = tuple(shape[axis] for axis in axes)
        if shape[2:] == (1, 1) and array.shape == (shape[1], shape[0], 1, 1):  # of a Conv2d
            array = array.swapaxes(0, 1)
    if array.shape != shape:
        raise ValueError(
            f"its entry {quoted(given)} is of shape {array.shape}, and {described(module)} of {module.features} "
            f"feature maps has {shape} there"
        )
    if array.dtype.kind != "f":
        raise ValueError(f"its entry {quoted(given)} is of {array.dtype}, not of floating numbers")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"its entry {quoted(given)} is not finite")
    if path[-1] == "var" and array.min() < 0:
        raise ValueError(f"its entry {quoted(given)} is negative, and no variance is")
    if path[-1] == "kernel":
        array = array.transpose(np.argsort(axes))
    elif path[-1] == "v":
        height, width, inputs, _ = shapes["params", path[1], "kernel"]
        array = array.reshape(inputs, height, width).transpose(1, 2, 0).reshape(-1)
    return np.ascontiguousarray(array)
