"""The compiled functions of a training: of one GAN, or of several that differ in their seed, in one program."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medgan_jax.compilation import compiled
from medgan_jax.config import Config
from medgan_jax.sharding import replicated
from medgan_jax.training.state import GANState, build_networks, initial_state
from medgan_jax.training.step import Metrics, generator_to_sample, metric_names, train_steps


class Program:
    """Networks, and what is done with their states, on the devices.

    Several states are one pytree, all leaves with a first axis over the seeds but for the step, which is theirs
    together: what happens at some steps only is a branch of the program then, not two computations of which one is
    kept. Where there is one seed, there is no such axis, and the seed is a constant of the program.
    """

    def __init__(
        self, config: Config, seeds: Sequence[int], mesh: Mesh, *, num_classes: int = 0, **rates: float
    ) -> None:
        """Builds the networks; compiles nothing yet.

        Args:
          config: the training.
          seeds: of the GANs; of a single one it is `config.seed`.
          mesh: the devices.
          num_classes: that the networks learn; 0 where they draw and judge without.
          **rates: `lr_gen` and `lr_dis`, in place of those of `config`.
        """
        self.networks = build_networks(dataclasses.replace(config, **rates), num_classes)
        self.seeds = seeds
        self._shared = shared = replicated(mesh)
        self._metrics = metric_names(config)
        bound = {"networks": self.networks, "config": config}
        several = len(seeds) > 1
        self._seeds = np.asarray(seeds, np.uint32) if several else None
        self._initialise = jax.jit(functools.partial(initial_state, self.networks, config), out_shardings=shared)
        run = functools.partial(_run_several if several else train_steps, **bound)
        self._train_steps = jax.jit(run, out_shardings=shared, donate_argnums=0)
        self._pick = jax.jit(_pick, out_shardings=shared)
        # Copies, where they are the network in training: its state is donated to the next call.
        self._generator_to_sample = jax.jit(
            lambda state, **seed: jax.tree.map(jnp.copy, generator_to_sample(state, **bound, **seed)),
            out_shardings=shared,
        )
        self._copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shared)
        self._compiled: jax.stages.Compiled | None = None

    def initial_state(self, member: int) -> GANState:
        """The state of one member before its first step."""
        return self._initial_program(**self._seed_of(member))

    @functools.cached_property
    def _initial_program(self) -> jax.stages.Compiled:
        return compiled(self._initialise, **self._seed_of(0))

    @functools.cached_property
    def like(self) -> GANState:
        """Shapes and types of one member's state."""
        return jax.eval_shape(self._initialise)

    def joined(self, states: Iterable[GANState]) -> GANState:
        """The members' states, all at one step, as one; they are gone through once."""
        if self._seeds is None:
            (state,) = states
            return state
        host = [jax.device_get(state) for state in states]  # so that the device never holds them twice
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *host).replace(step=host[0].step)
        return jax.device_put(stacked, self._shared, may_alias=False)

    def member_state(self, state: GANState, member: int) -> GANState:
        """The state of one member; where there is but one, the same arrays, which the next call takes."""
        return state if self._seeds is None else self._pick(state, np.int32(member))

    def generator_to_sample(self, state: GANState, member: int) -> dict[str, Any]:
        """The variables to draw pictures from, for one member's own `state`; see `step.generator_to_sample`."""
        return self._generator_to_sample(state, **self._seed_of(member))

    def discriminator(self, state: GANState) -> dict[str, Any]:
        """The discriminator's variables, in one member's own `state`, as copies."""
        return self._copied(state.dis.variables)

    def compile(self, images: Any, indices: Any, labels: Any = None) -> jax.stages.Compiled:
        """The program that trains, for data of these shapes: arrays or ShapeDtypeStructs. It is compiled once."""
        if self._compiled is None:
            state = self.like
            if self._seeds is not None:
                stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.seeds), *x.shape), x.dtype), state)
                state = stacked.replace(step=state.step)
            state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._shared), state)
            steps = jax.ShapeDtypeStruct((), np.int32, sharding=self._shared)
            shapes = images, indices, steps, labels
            self._compiled = compiled(self._train_steps, state, *shapes, **self._seeds_of_all())
        return self._compiled

    def run(
        self, state: GANState, images: Any, indices: Any, count: int, labels: Any = None
    ) -> tuple[GANState, Metrics]:
        """`count` steps of all members; see `step.train_steps`. The program must be compiled."""
        return self._compiled(state, images, indices, np.int32(count), labels, **self._seeds_of_all())

    def figures(self, history: Metrics, count: int) -> list[dict[str, np.ndarray]]:
        """For each member, the metrics of the first `count` steps of a call, once they are there."""
        values = {name: np.asarray(history[name])[..., :count] for name in self._metrics}
        if self._seeds is None:
            return [values]
        return [{name: value[member] for name, value in values.items()} for member in range(len(self.seeds))]

    def _seed_of(self, member: int) -> dict[str, np.uint32]:
        return {} if self._seeds is None else {"seed": self._seeds[member]}

    def _seeds_of_all(self) -> dict[str, np.ndarray]:
        return {} if self._seeds is None else {"seeds": self._seeds}


def _run_several(
    state: GANState,
    images: jax.Array,
    indices: jax.Array,
    count: jax.Array,
    labels: jax.Array | None = None,
    *,
    seeds: jax.Array,
    **bound: Any,
) -> tuple[GANState, Metrics]:
    """`train_steps` of S members: state, indices (S, K, N), labels (S, K, N) or None, and seeds (S,) are theirs."""

    def run(state: GANState, indices: jax.Array, labels: jax.Array | None, seed: jax.Array) -> tuple[GANState, Metrics]:
        return train_steps(state, images, indices, count, labels, seed=seed, **bound)

    axes = type(state)(**{field.name: 0 for field in dataclasses.fields(state)}).replace(step=None)
    return jax.vmap(run, in_axes=(axes, 0, 0, 0), out_axes=(axes, 0))(state, indices, labels, seeds)


def _pick(state: GANState, member: jax.Array) -> GANState:
    return jax.tree.map(lambda leaf: leaf[member], state.replace(step=None)).replace(step=state.step)
