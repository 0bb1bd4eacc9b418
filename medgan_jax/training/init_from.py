"""First weights from another training, the usual remedy for tiny data sets (Wang et al. 2018, arXiv:1805.01677)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Sharding

from medgan_jax.checkpoint import TrainedGenerator, load_networks
from medgan_jax.errors import UserError
from medgan_jax.models.spectral_norm import power_iteration
from medgan_jax.training.state import GANState, NetworkState


def check_origin(origin: str) -> None:
    """Raises UserError where there is nothing to begin with, before the images are decoded."""
    if not Path(origin).expanduser().exists():
        raise UserError(
            f"init_from={origin}: no such folder or file; give a workdir, a folder with generator/ or discriminator/, "
            "or a PyTorch state dict (.pth)"
        )


def load(state: GANState, origin: str, sharding: Sharding) -> tuple[GANState, list[str]]:
    """Puts weights and statistics of other networks into a state that has not been trained yet.

    A layer is taken whole, and only where all its parameters have the shapes of ours; others keep their initial values.
    A layer that was divided by its kernel's singular value, and is not here, comes divided. The optimizers start anew.

    Args:
      state: the initial state.
      origin: a workdir, a folder of one network or both, or a PyTorch state dict.
      sharding: where every array goes.

    Returns:
      The state, and a line for each network: what was taken, and what was left out.

    Raises:
      UserError: `origin` cannot be read, or no layer at all fits.
    """
    networks = load_networks(Path(origin).expanduser(), sharding)
    found = {"gen" if isinstance(network, TrainedGenerator) else "dis": network for network in networks}
    lines, fits = [], False
    for name, title in (("gen", "generator"), ("dis", "discriminator")):
        if name not in found:
            lines.append(f"{title}: none in {origin}, so it starts anew")
            continue
        own: NetworkState = getattr(state, name)
        params, stats, taken, left_out = _merge_layers(own, found[name].variables)
        state = state.replace(**{name: own.replace(params=params, stats=stats)})
        fits = fits or bool(taken)
        which = ", ".join(taken) or "nothing"
        kept = f"; left out, as they differ: {', '.join(left_out)}" if left_out else ""
        step = "" if "imported_from" in found[name].about else f" at step {found[name].step}"
        lines.append(f"{title}: {which if left_out else 'all layers'} from {origin}{step}{kept}")
    if not fits:
        raise UserError(
            f"init_from={origin}: no layer there has the shape of one of this training ({'; '.join(lines)}); "
            "set image_size, gen_features and dis_features as they were there"
        )
    if state.ema_params is not None:
        state = state.replace(ema_params=jax.tree.map(jnp.copy, state.gen.params))
    return state, lines


def _merge_layers(
    own: NetworkState, found: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str], list[str]]:
    """Parameters and statistics, and the layers taken and left out, these with both shapes."""
    params, stats = _layers(own.params), {name: _layers(tree) for name, tree in own.stats.items()}
    theirs = {name: _layers(tree) for name, tree in found.items()}
    taken, left_out = [], []
    for layer, ours in params.items():
        other = theirs["params"].get(layer)
        if _shapes(other) != _shapes(ours):
            left_out.append(f"{layer} ({_spoken(other)} there, {_spoken(ours)} here)")
            continue
        taken.append(layer)
        vectors = theirs.get("spectral", {}).get(f"{layer}/spectral_norm")
        params[layer] = other if vectors is None or "spectral" in stats else _divided(other, **vectors)
        for collection, layers in stats.items():
            place = f"{layer}/spectral_norm" if collection == "spectral" else layer
            if place in layers and _shapes(theirs.get(collection, {}).get(place)) == _shapes(layers[place]):
                layers[place] = theirs[collection][place]
            elif place in layers and collection == "spectral":
                layers[place] = _fitted(layers[place]["u"], other["kernel"])
    nested = {name: traverse_util.unflatten_dict(layers, sep="/") for name, layers in stats.items()}
    return traverse_util.unflatten_dict(params, sep="/"), nested, taken, left_out


def _layers(tree: dict[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """The innermost dictionaries by their paths, such as "block_0/conv_1"."""
    flat: dict[str, dict[str, jax.Array]] = {}
    for (*path, name), leaf in traverse_util.flatten_dict(tree).items():
        flat.setdefault("/".join(path), {})[name] = leaf
    return flat


def _fitted(u: jax.Array, kernel: jax.Array) -> dict[str, jax.Array]:
    """Singular vectors for a kernel that came without; those of another kernel would divide by next to nothing."""
    u, v, _ = power_iteration(kernel.reshape(-1, kernel.shape[-1]), u)
    return {"u": u, "v": v}


def _divided(layer: dict[str, jax.Array], u: jax.Array, v: jax.Array) -> dict[str, jax.Array]:
    """What spectral normalisation makes of a kernel."""
    kernel = layer["kernel"]
    return {**layer, "kernel": kernel / (v @ kernel.reshape(-1, kernel.shape[-1]) @ u)}


def _shapes(layer: Any) -> Any:
    return layer and jax.tree.map(jnp.shape, layer)


def _spoken(layer: Any) -> str:
    return " and ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(layer)) if layer else "none"
