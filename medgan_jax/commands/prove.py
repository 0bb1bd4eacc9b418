"""Tells whether synthetic images help a classifier, on your own labelled images, with intervals.

medgan prove --config=small128 --config.data.path=/data/lesions --out=runs/prove    a folder for each class
medgan prove --config=small128 --config.conditional=True ...    one generator for all classes, in place of one for each
medgan prove --quick --out=runs/quick       a small trial on embedded phantoms, in minutes

The images are divided into folds. For each, generators and classifiers are trained on the other folds, and judged by
this one, so that no held-out image reaches any of them. Stopped, the same command goes on where it was.
"""

import contextlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from medgan_jax import cli
from medgan_jax.config import default_config, help_text, parse_config
from medgan_jax.errors import UserError

_QUICK = {
    "num_steps": 60, "image_size": 32, "gen_features": 4, "batch_size": 8, "monitor_every_steps": 0, "report": False,
    "sample_every_steps": 60, "checkpoint_every_steps": 60, "conditional": True, "tensorboard": False,
}  # fmt: skip
_QUICK_PHANTOMS = 120


def main(argv: list[str]) -> int:
    """Parses the flags, and runs the trial."""
    values = flags.FlagValues()
    quick = any(argument in ("--quick", "--quick=true", "--quick=True") for argument in argv)
    if quick and not any(argument.partition("=")[0] == "--config" for argument in argv):
        argv = ["--config=quickstart", *argv]
    config, argv = cli.load_config(argv)
    if quick and (data := [argument for argument in argv if argument.startswith("--config.data.")]):
        raise UserError(f"{data[0]}: --quick is a trial on phantoms; leave out one of them")
    if quick and config is not None:
        config.update(_QUICK)
        config.data.update(source="phantom", num_phantoms=_QUICK_PHANTOMS)
    define: dict[str, Any] = {"flag_values": values}
    config_flags.DEFINE_config_dict(
        "config",
        config or default_config(),
        help_string="of the generators: the name of a packaged config such as small64, or the path of one",
        lock_config=True,
        sys_argv=["medgan", *argv],
        **define,
    )
    flags.DEFINE_string("out", None, "the folder of the trial; made when missing", **define)
    flags.DEFINE_integer("folds", 3 if quick else 5, "how many parts the images are divided into", 2, 20, **define)
    flags.DEFINE_enum(
        "classifier", "linear" if quick else "finetuned", ("linear", "finetuned"),
        "logistic regression on EfficientNet-Lite0's features, in minutes; or all of it fine-tuned, in hours", **define,
    )  # fmt: skip
    flags.DEFINE_integer("seeds", 2 if quick else 5, "classifiers of each arm in each fold", 2, 100, **define)
    flags.DEFINE_integer("steps", 300, "of a classifier's training, of 32 images", 1, **define)
    flags.DEFINE_list("ratios", ["0.5", "1", "2"], "fakes for each real of their class, one arm each", **define)
    flags.DEFINE_string(
        "generators", None, "a folder with fold_1/gan and so on, already trained with config.data.folds and .fold, in "
        "place of training; gan_0, gan_1, ... where each class has a generator of its own", **define,
    )  # fmt: skip
    flags.DEFINE_bool("quick", False, "a small trial on embedded phantoms, to see what comes out", **define)
    cli.parse_flags(values, argv, doc=__doc__, more_help=help_text)
    if config is None:
        raise UserError("give --config=..., such as --config=small64, or --quick")

    from medgan_jax.proving.page import PAGE, table
    from medgan_jax.proving.trial import Settings, prove
    from medgan_jax.sharding import announce_devices

    settings = Settings(
        folds=values.folds,
        classifier=values.classifier,
        seeds=values.seeds,
        steps=values.steps,
        ratios=_ratios(values.ratios),
    )
    out = cli.given_path("out", values.out)
    generators = cli.given_path("generators", values.generators) if values.generators else None
    announce_devices()
    code, verdict = prove(parse_config(values.config), out, settings, generators=generators, command=cli.command_line())
    if verdict is not None:
        print(table(verdict))
        print(f"\nLook at {out / PAGE}")
    return code


def _ratios(texts: list[str]) -> tuple[float, ...]:
    ratios = []
    for text in texts:
        with contextlib.suppress(ValueError):
            ratios.append(float(text))
    if len(ratios) < len(texts) or not ratios or not all(0 < ratio <= 100 for ratio in ratios):
        raise UserError(f"--ratios={','.join(texts)}: give numbers above 0, such as 0.5,1,2")
    return tuple(sorted(set(ratios)))
