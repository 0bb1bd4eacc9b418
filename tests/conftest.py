"""Every test runs on two CPU devices, with checks that a user's run can do without."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"

import jax
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `configs`, which is no part of the package

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def tiny_config():
    """A function that makes a small training's Config; keyword arguments override fields, `data_` those of data."""
    from configs import default
    from medgan_jax.config import parse_config

    def make(**overrides):
        c = default.get_config()
        c.update(
            arch="sngan", image_size=16, latent_dim=8, gen_features=4, dis_features=4, batch_size=4, num_steps=8,
            log_every_steps=2, sample_every_steps=4, checkpoint_every_steps=4, num_sample_images=4,
        )  # fmt: skip
        c.data.update(source="phantom", num_phantoms=12)
        for name, value in overrides.items():
            if name.startswith("data_"):
                c.data[name.removeprefix("data_")] = value
            else:
                c[name] = value
        return parse_config(c)

    return make
