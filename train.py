#!/usr/bin/env python3
"""Trains a DCGAN or SNGAN on a folder of images, and goes on where it stopped when started again.

python train.py --config=configs/sngan64.py --workdir=runs/melanoma --config.data.path=/data/isic
python train.py --config=configs/control_file.py:input.yaml    a control file of MedImageGAN, as it is
python train.py --config=... --workdir=runs/five --seeds=5     five GANs at once, in runs/five/seed_0, seed_1, ...

Every field of the config is explained in configs/default.py; set any with --config.FIELD=VALUE.
"""

import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from medgan_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="What to train, a file in configs/, such as configs/sngan64.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, pictures and logs go, made when missing; by default config.output_prefix."
)
_SEEDS = flags.DEFINE_integer(
    "seeds", 1, "How many GANs to train at once, of config.seed and those that follow, for the spread of every figure."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several machines: HOST:PORT where process 0 listens. SLURM, torchrun and TPUs need no flags."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several machines: how many processes train together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several machines: which of them this is, from 0.")
flags.mark_flag_as_required("config")


def main() -> int:
    """Flags to config to training."""
    from medgan_jax.config import parse_config
    from medgan_jax.distributed import find_cluster, joined
    from medgan_jax.training.loop import train

    workdir = cli.value_or("workdir", _CONFIG.value.get("output_prefix"))
    config = parse_config(_CONFIG.value)
    with joined(find_cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)):
        return train(config, Path(workdir).expanduser(), seeds=_SEEDS.value, command=shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
