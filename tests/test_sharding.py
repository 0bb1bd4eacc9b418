"""The mesh; any number of devices gives the same training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from medgan_jax.errors import UserError
from medgan_jax.sharding import check_batch_size, data_mesh, local_copy, local_mesh, replicated, sharded

pytestmark = pytest.mark.slow


def test_batches_are_divided_and_the_rest_is_replicated():
    mesh = data_mesh()
    assert mesh.size == jax.device_count() == 2 and local_mesh() == mesh  # one process has all devices
    batch = jax.device_put(jnp.zeros((3, 8)), sharded(mesh, axis=1))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(3, 4)}
    copy = local_copy({"a": jax.device_put(jnp.arange(3.0), replicated(mesh))}, mesh)["a"]
    assert copy.sharding.is_fully_replicated and copy.tolist() == [0, 1, 2]


def test_batch_must_divide():
    mesh = data_mesh()
    check_batch_size(6, mesh)
    with pytest.raises(UserError, match="batch_size=5 does not divide over 2 devices.*such as 4"):
        check_batch_size(5, mesh)


EIGHT_DEVICES = """
import contextlib, functools, json, re, sys
import jax, numpy as np
from jax.sharding import Mesh
from configs import default
from medgan_jax.config import parse_config
from medgan_jax.data.batches import ResidentBatches, StreamedBatches
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.step import train_step_at

c = default.get_config()
c.update(arch="sngan", image_size=16, latent_dim=16, gen_features=8, dis_features=8, batch_size=16)
c.checkerboard_weight = 1.0
c.data.update(source="phantom", horizontal_flip=True)
config = parse_config(c)
path = sys.argv[1]
networks = build_networks(config, num_classes=3)
classes = np.arange(50, dtype=np.int32) % 7 % 3
np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8).tofile(path)
images = np.memmap(path, np.uint8, "r", shape=(50, 16, 16, 3))

start = jax.device_get(jax.jit(functools.partial(initial_state, networks, config))())

def trained(mesh, kind, steps=20):
    shared = replicated(mesh)
    state = jax.device_put(start, shared)
    order = {"batch_size": 16, "seed": 0, "classes": classes, "balanced": True}
    batches = kind(images, first_step=0, mesh=mesh, **order)
    with contextlib.closing(batches):
        run = jax.jit(functools.partial(train_step_at, networks=networks, config=config), out_shardings=shared)
        pixels, indices, count, labels = batches.take(steps)
        number = jax.ShapeDtypeStruct((), np.int32, sharding=shared)
        with jax.set_mesh(mesh):
            run = run.lower(state, *batches.shapes, number, batches.labels).compile()
        after = state
        for k in range(count):
            after, _ = run(after, pixels, indices, np.int32(k), labels)
        after = jax.device_get(after)
    collectives = set(re.findall(r" (all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\\(", run.as_text()))
    return after, run.cost_analysis()["flops"], collectives

def distance(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))

assert data_mesh().size == 8
one = Mesh(np.array(jax.devices()[:1]), ("data",))
expected, all_flops, _ = trained(one, ResidentBatches)
eight, flops, collectives = trained(data_mesh(), StreamedBatches)
assert int(eight.step) == 20
moved = distance(start.dis.params, expected.dis.params)
print(json.dumps([moved, distance(expected, eight), flops / all_flops, sorted(collectives)]))
"""


def test_eight_devices_train_as_one_does(tmp_path):
    """20 steps of three classes at the published rate, streamed against resident, each device with an eighth of them.

    Parameters, statistics and moments agree, and the devices exchange nothing but sums.
    """
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, tmp_path / "images"],
        cwd=Path(__file__).parents[1], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    moved, distance, work, collectives = json.loads(done.stdout)
    assert moved > 1e-3
    # Adam divides the gradients of a class that a batch hardly has by their own size, rounding included.
    assert distance < 2e-5
    assert 1 / 8 <= work < 1.3 / 8  # normalising kernels and Adam are not divided
    assert collectives == ["all-reduce"]
