"""The mesh and what fits on it."""

import jax
import jax.numpy as jnp
import pytest

from medgan_jax.errors import UserError
from medgan_jax.sharding import check_batch_size, data_mesh, replicated, sharded


def test_batches_are_divided_and_the_rest_is_replicated():
    mesh = data_mesh()
    assert mesh.size == jax.device_count() == 2
    batch = jax.device_put(jnp.zeros((3, 8)), sharded(mesh, axis=1))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(3, 4)}
    assert jax.device_put(jnp.zeros(8), replicated(mesh)).sharding.is_fully_replicated


def test_batch_must_divide():
    mesh = data_mesh()
    check_batch_size(6, mesh)
    with pytest.raises(UserError, match="batch_size=5 does not divide over 2 devices.*such as 4"):
        check_batch_size(5, mesh)
