"""Trains a GAN on a folder of images; started again, the same command goes on where it stopped.

python train.py --config=configs/sngan64.py --workdir=runs/melanoma --config.data.path=/data/isic
python train.py --config=... --workdir=runs/five --seeds=5      five runs, in runs/five/seed_0, seed_1, ...
python train.py --config=configs/control_file.py:input.yaml     a control file of MedImageGAN, as it is
medgan train --config=small64 ...                               the same, with a packaged config by its name

Set any field of the config with --config.FIELD=VALUE.
"""

from absl import flags
from ml_collections import config_flags

from medgan_jax import cli
from medgan_jax.config import default_config, help_text, parse_config
from medgan_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Parses the flags, builds the config, and trains; returns the exit code."""
    values = flags.FlagValues()
    given, argv = cli.load_config(argv)
    config_flags.DEFINE_config_dict(
        "config",
        given or default_config(),
        help_string="the name of a packaged config, or the path of one, such as configs/sngan64.py",
        lock_config=True,
        flag_values=values,
        sys_argv=["medgan", *argv],
    )
    flags.DEFINE_string(
        "workdir", None, "the output folder; made when missing; by default config.output_prefix", flag_values=values
    )
    flags.DEFINE_integer(
        "seeds", 1, "how many runs, one after the other: config.seed and the seeds that follow it", 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator",
        None,
        "several machines: HOST:PORT where process 0 listens; see docs/scaling.md",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "several machines: how many processes", flag_values=values)
    flags.DEFINE_integer("process_id", None, "several machines: which of them this is, from 0", flag_values=values)
    cli.parse_flags(values, argv, doc=__doc__, more_help=help_text)
    if given is None:
        raise UserError("give --config=..., such as --config=small64")
    if "num_steps" not in given:
        raise UserError("--config: is for sampling; run sample.py, or medgan sample, with it")

    config = parse_config(values.config)
    workdir = cli.given_path("workdir", values.workdir or config.output_prefix)

    cli.keep_freed_memory()
    from medgan_jax.api import extra_callbacks
    from medgan_jax.distributed import find_cluster, is_leader, joined
    from medgan_jax.sharding import announce_devices
    from medgan_jax.training.seeds import train_seeds
    from medgan_jax.training.trainer import train

    with joined(find_cluster(values.coordinator, values.num_processes, values.process_id)):
        if is_leader():
            announce_devices()
        train_fn = train if values.seeds == 1 else train_seeds(values.seeds)
        return train_fn(config, workdir, callbacks=extra_callbacks(config), command=cli.command_line())
