"""Every test runs on two CPU devices, with checks that a user's run can do without.

Compiling takes most of the time: machine code is left unoptimised, and compiled once for all tests. Tests that start
a command of ours give it `command_environment`.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

if "MEDGAN_JAX_TESTS" not in os.environ:  # else a process of pytest-xdist, which inherits what was changed below
    _folder = tempfile.TemporaryDirectory(prefix="medgan_jax_tests_")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # on busy cores, threads that wait for each other take ten times as long
    os.environ["MEDGAN_JAX_TESTS"] = json.dumps([_folder.name, dict(os.environ)])
_cache, _environment = json.loads(os.environ["MEDGAN_JAX_TESTS"])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
_cheap = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
    _cheap.append("--xla_cpu_use_fusion_emitters=false")  # which write several times as much code
    _cheap.append("--xla_cpu_parallel_codegen_split_count=1")  # the parts of a program share much that is done for each
_flags = " ".join([_environment.get("XLA_FLAGS", ""), *_cheap])
_COMMAND_ENVIRONMENT = {
    **_environment, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": _cache, "XLA_FLAGS": _flags,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}  # fmt: skip
os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=2"

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `configs`, which is no part of the package

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def command_environment():
    """Environment variables for a subprocess: one CPU device, and caches that do not outlive the tests."""
    return dict(_COMMAND_ENVIRONMENT)


@pytest.fixture(scope="session")
def tiny_config():
    """A function that makes a small training's Config; keyword arguments override fields, `data_x` is data.x."""
    from configs import default
    from medgan_jax.config import parse_config

    def make(**overrides):
        c = default.get_config()
        c.update(
            arch="sngan", image_size=16, latent_dim=8, gen_features=4, dis_features=4, batch_size=4, num_steps=8,
            log_every_steps=2, sample_every_steps=4, checkpoint_every_steps=4, num_sample_images=4,
            monitor_every_steps=0, tensorboard=False, report=False, guard=False,
        )  # fmt: skip
        c.data.update(source="phantom", num_phantoms=12)
        for name, value in overrides.items():
            group, _, leaf = name.partition("_")
            if group in ("data", "augment"):
                c[group][leaf] = value
            else:
                c[name] = value
        return parse_config(c)

    return make
