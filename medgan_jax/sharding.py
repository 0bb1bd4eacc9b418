"""Devices: one mesh axis, `data`, over which batches are divided; everything else is replicated."""

import contextlib
import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medgan_jax.errors import UserError

_AXIS = "data"


def data_mesh() -> Mesh:
    """The mesh of all devices, of all processes."""
    return jax.make_mesh((jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))


def announce_devices() -> None:
    """Prints what computes, of all processes: "running on 2 CPU cores", "running on 4 x NVIDIA H100"."""
    devices = jax.devices()
    what = f"{len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        what = f"{cores} CPU core{'s' if cores != 1 else ''}"
        what += f" as {len(devices)} devices" if len(devices) > 1 else ""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        print(f"running on {what}")


def local_mesh() -> Mesh:
    """The mesh of this process's devices; with one process the same as `data_mesh`."""
    return jax.make_mesh(
        (jax.local_device_count(),), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.local_devices()
    )


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Arrays replicated over all processes as arrays replicated over `mesh`, of this process's devices alone."""
    return jax.device_put(jax.tree.map(lambda x: x.addressable_data(0), tree), replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters and of the resident data set."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """The sharding of an array whose `axis` is the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _AXIS))


def divided(batch: jax.Array) -> jax.Array:
    """In jit: divides a batch made there over the mesh of `jax.set_mesh`; without one it stays as it is.

    What is computed from arrays that are given is divided as they are. XLA would compute the rest on every device.
    """
    if _AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError when a batch cannot be divided over the devices."""
    if batch_size % mesh.size:
        fits = max(batch_size // mesh.size, 1) * mesh.size
        raise UserError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices; "
            f"use a multiple of {mesh.size} such as {fits}"
        )
