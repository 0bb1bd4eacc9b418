"""Runs MedImageGAN's published experiments on a folder of images, and tabulates our scores beside the published ones.

    medgan experiments --data=/data/isic --out=runs/experiments
    medgan experiments --data=/data/isic --only=batch_16,latent_128 --scale=0.05

The same command goes on where it stopped. OUT/table.md and OUT/table.json are the table, OUT/table.png the first fakes
of each, OUT/NAME.png reals above fakes, and OUT/NAME the workdir of a training, for sample.py and evaluate.py.
"""

import argparse
import math
from pathlib import Path

from medgan_jax.cli import PathFlag
from medgan_jax.errors import ArgumentParser, UserError

_DATA_FIELDS = ("labels_csv", "image_column", "label_column", "class_filter")


def main(argv: list[str]) -> int:
    """Runs the experiments that the arguments name; exit code as of `run_experiments`."""
    parser = ArgumentParser(
        prog="medgan experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action=PathFlag, required=True, help="folder of images")
    parser.add_argument("--labels_csv", "--labels", action=PathFlag, default="", help="table of image names and labels")
    parser.add_argument("--image_column", default="image", help="of the table, if it has a header")
    parser.add_argument("--label_column", default="label", help="of the table, if it has a header")
    parser.add_argument("--class_filter", "--label", default="", help="train on this class alone")
    parser.add_argument("--out", action=PathFlag, default="runs/experiments", help="where everything goes")
    parser.add_argument("--only", default="", help="names with commas between, such as batch_16,latent_128")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the epochs; 0.05 is a twentieth")
    parser.add_argument("--features", type=int, help="feature maps of both networks, in place of 64")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, order, latents, and halves of the reals")
    args = parser.parse_args(argv)
    if not args.out:
        raise UserError("give --out=...")
    if not 0 < args.scale < math.inf:
        raise UserError(f"--scale={args.scale:g}: must be a number above 0")

    from medgan_jax.compat.medimagegan.experiments import PUBLISHED_FIGURES, run_experiments
    from medgan_jax.config import named_config, parse_config
    from medgan_jax.data.sources import open_source
    from medgan_jax.sharding import announce_devices

    wanted = [name.strip() for name in args.only.split(",") if name.strip()]
    for name in wanted:
        if name not in PUBLISHED_FIGURES:
            raise UserError(f"--only={name}: there is no such experiment; give some of {', '.join(PUBLISHED_FIGURES)}")
    configs = {}
    for name in PUBLISHED_FIGURES:
        if name in wanted or not wanted:
            c = named_config(f"medimagegan:{name}")
            c.seed = args.seed
            if args.features is not None:
                c.gen_features = c.dis_features = args.features
            c.data.update(source="csv" if args.labels_csv else "folder", path=args.data)
            c.data.update({field: getattr(args, field) for field in _DATA_FIELDS})
            configs[name] = parse_config(c)
    open_source(next(iter(configs.values())).data)  # refuses a wrong folder, table or class before anything is written
    settings = {"data": Path(args.data).resolve().name}
    settings |= {name: getattr(args, name) for name in ("class_filter", "scale", "seed", "features")}
    announce_devices()
    code = run_experiments(configs, Path(args.out), settings)
    if not code:
        print(Path(args.out, "table.md").read_text())
    return code
