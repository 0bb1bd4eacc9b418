"""Initial weights from another training, the usual remedy for tiny data sets (Wang et al. 2018, arXiv:1805.01677)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Sharding

from medgan_jax.checkpoint import TrainedGenerator, load_networks
from medgan_jax.errors import UserError
from medgan_jax.files import local_path
from medgan_jax.models.spectral_norm import power_iteration
from medgan_jax.training.state import GANState, NetworkState


def check_exists(path: str) -> None:
    """Raises UserError where nothing is at `path`; called before the images are decoded, which takes longer."""
    if not local_path("init_from", path).exists():
        raise UserError(
            f"init_from={path}: no such folder or file; give a workdir, a folder with generator/ or discriminator/, "
            "or a PyTorch state dict (.pth)"
        )


def load(state: GANState, path: str, sharding: Sharding) -> tuple[GANState, list[str]]:
    """Copies weights and statistics of trained networks into an initial state.

    A layer is copied whole, and only where all its parameters have the shapes of ours; other layers keep their initial
    values. A kernel that had spectral normalisation is divided by its singular value where ours has none. Optimizers
    keep their initial state.

    Args:
      state: the initial state.
      path: a workdir, a folder of one network or both, or a PyTorch state dict.
      sharding: where every array goes.

    Returns:
      The state, and a line for each network that says which layers were copied.

    Raises:
      UserError: `path` cannot be read, or no layer has the shape of one of ours.
    """
    networks = load_networks(local_path("init_from", path), sharding)
    trained = {"gen" if isinstance(network, TrainedGenerator) else "dis": network for network in networks}
    lines, any_copied = [], False
    for name, title in (("gen", "generator"), ("dis", "discriminator")):
        if name not in trained:
            lines.append(f"{title}: none in {path}, so it starts anew")
            continue
        network: NetworkState = getattr(state, name)
        params, stats, copied, skipped = _copy_layers(network, trained[name].variables)
        state = state.replace(**{name: network.replace(params=params, stats=stats)})
        any_copied = any_copied or bool(copied)
        layers = "all layers" if not skipped else ", ".join(copied) or "nothing"
        step = "" if "imported_from" in trained[name].about else f" at step {trained[name].step}"
        rest = f"; left out, as they differ: {', '.join(skipped)}" if skipped else ""
        lines.append(f"{title}: {layers} from {path}{step}{rest}")
    if not any_copied:
        raise UserError(
            f"init_from={path}: no layer there has the shape of one of this training ({'; '.join(lines)}); "
            "set image_size, gen_features and dis_features as they were there"
        )
    if state.ema_params is not None:
        state = state.replace(ema_params=jax.tree.map(jnp.copy, state.gen.params))
    return state, lines


def _copy_layers(
    network: NetworkState, trained: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str], list[str]]:
    """The new parameters and statistics; the layers that were copied, and those that were not, with both shapes."""
    params, stats = _layers(network.params), {name: _layers(tree) for name, tree in network.stats.items()}
    theirs = {name: _layers(tree) for name, tree in trained.items()}
    copied, skipped = [], []
    for layer, ours in params.items():
        other = theirs["params"].get(layer)
        if other is None or _shapes(other) != _shapes(ours):
            skipped.append(f"{layer} ({_describe_shapes(other)} there, {_describe_shapes(ours)} here)")
            continue
        copied.append(layer)
        vectors = theirs.get("spectral", {}).get(f"{layer}/spectral_norm")
        params[layer] = other if vectors is None or "spectral" in stats else _divide_kernel(other, **vectors)
        for collection, layers in stats.items():
            key = f"{layer}/spectral_norm" if collection == "spectral" else layer
            if key in layers and _shapes(theirs.get(collection, {}).get(key)) == _shapes(layers[key]):
                layers[key] = theirs[collection][key]
            elif key in layers and collection == "spectral":
                layers[key] = _singular_vectors(other["kernel"], layers[key]["u"])
    nested = {name: traverse_util.unflatten_dict(layers, sep="/") for name, layers in stats.items()}
    return traverse_util.unflatten_dict(params, sep="/"), nested, copied, skipped


def _layers(tree: dict[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """The innermost dictionaries by their paths, such as "block_0/conv_1"."""
    flat: dict[str, dict[str, jax.Array]] = {}
    for (*path, name), leaf in traverse_util.flatten_dict(tree).items():
        flat.setdefault("/".join(path), {})[name] = leaf
    return flat


def _singular_vectors(kernel: jax.Array, u: jax.Array) -> dict[str, jax.Array]:
    """Singular vectors of a kernel that was saved without; with those of another one, sigma would be next to zero."""
    u, v, _ = power_iteration(kernel.reshape(-1, kernel.shape[-1]), u)
    return {"u": u, "v": v}


def _divide_kernel(layer: dict[str, jax.Array], u: jax.Array, v: jax.Array) -> dict[str, jax.Array]:
    """A layer whose kernel is divided by its largest singular value, as spectral normalisation does."""
    kernel = layer["kernel"]
    return {**layer, "kernel": kernel / (v @ kernel.reshape(-1, kernel.shape[-1]) @ u)}


def _shapes(layer: dict[str, jax.Array] | None) -> Any:
    return layer and jax.tree.map(jnp.shape, layer)


def _describe_shapes(layer: dict[str, jax.Array] | None) -> str:
    return " and ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(layer)) if layer else "none"
