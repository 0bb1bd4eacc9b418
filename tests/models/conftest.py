"""Variables without compiling a network's initialisation."""

import functools

import jax
import numpy as np
import projected_oracle
import pytest
from flax import traverse_util


@pytest.fixture(scope="session")
def drawn():
    """A function from a module and its inputs to variables far from the initial ones, numpy float32.

    The left singular vectors are those that follow from the right ones.
    """

    def draw(module, *inputs):
        tree = jax.eval_shape(functools.partial(module.init, training=True), jax.random.key(0), *inputs)
        assert {x.dtype for x in jax.tree.leaves(tree)} == {np.dtype("float32")}
        flat = traverse_util.flatten_dict(tree, sep="/")
        flat = {path: projected_oracle.drawn(path, x.shape) for path, x in flat.items()}
        for path in flat:
            if path.endswith("spectral_norm/v"):
                kernel = flat[path.replace("spectral/", "params/", 1).replace("spectral_norm/v", "kernel")]
                product = kernel.reshape(-1, kernel.shape[-1]) @ flat[path[:-1] + "u"]
                flat[path] = product / np.linalg.norm(product)
        return traverse_util.unflatten_dict(flat, sep="/")

    return draw
