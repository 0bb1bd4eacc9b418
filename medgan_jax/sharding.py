"""Device meshes of one axis, `data`, over which batches are divided; everything else is replicated."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medgan_jax.errors import UserError

_AXIS = "data"


def data_mesh() -> Mesh:
    """A mesh of all devices, of all processes."""
    return jax.make_mesh((jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
    """A mesh of this process's own devices; with one process the same as `data_mesh`."""
    return jax.make_mesh(
        (jax.local_device_count(),), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.local_devices()
    )


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays that are replicated over all processes to `mesh`, which is of this process alone."""
    return jax.device_put(jax.tree.map(lambda x: x.addressable_data(0), tree), replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters and of the resident data set."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """The sharding of an array whose `axis` is the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError when a batch cannot be divided over the devices."""
    if batch_size % mesh.size:
        fits = max(batch_size // mesh.size, 1) * mesh.size
        raise UserError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices; "
            f"use a multiple of {mesh.size} such as {fits}"
        )
