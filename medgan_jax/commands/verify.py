"""Tells which images a generator drew, and whether they were changed: it draws them again and compares.

medgan verify synthetic --checkpoint=runs/melanoma     a folder
medgan verify lesion.jpg --checkpoint=runs/melanoma    looked for among the first 1,000 images of --seed
medgan verify lesion.png                               only what the file says of itself

Prints a line for each image that is not the same, then how many there are of each kind. The exit code is 0 if all are
the same, though some may be encoded anew, such as JPEG files made of ours; else 1. Without --checkpoint it is 0.
"""

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable

from medgan_jax import cli
from medgan_jax.errors import ArgumentParser, UserError
from medgan_jax.files import local_path


def main(argv: list[str]) -> int:
    """Compares what the command line names, and prints."""
    args = _parse(argv)
    from medgan_jax.checkpoint import load_generator
    from medgan_jax.sharding import announce_devices, data_mesh, replicated
    from medgan_jax.verification import ENCODED, SAME, verify

    generator = mesh = None
    if args.checkpoint is not None:
        announce_devices()
        mesh = data_mesh()
        generator = load_generator(cli.given_path("checkpoint", args.checkpoint), replicated(mesh))
    if not args.path:  # as an unset shell variable leaves it
        raise UserError("give an image, or a folder of images")
    counts: Counter[str] = Counter()
    options = {"seed": args.seed, "search": args.search, "tolerance": args.tolerance}
    for finding in verify(local_path("FILE", args.path), generator, mesh, **options):
        counts[finding.verdict] += 1
        if finding.verdict != SAME:
            line = f"{finding.path}: {', '.join(filter(None, (finding.verdict, finding.detail)))}"
            print("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))  # files say what they like
    if generator is None:
        return 0
    print(", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))
    return 0 if counts.keys() <= {SAME, ENCODED} else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="medgan verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="FILE|FOLDER", help="an image, or a folder of images")
    parser.add_argument("--checkpoint", help="a workdir, a generator folder or a .pth file")
    parser.add_argument("--seed", type=_whole(0, 2**32 - 1), default=0, help="of images that name no origin; 0")
    parser.add_argument("--search", type=_whole(1, 10**6), default=1000, help="among how many of them to look; 1000")
    parser.add_argument(
        "--tolerance", type=_whole(0, 255), default=0,
        help="grey levels by which a pixel may differ: 1 or 2 where another kind of device drew it; 0",
    )  # fmt: skip
    return parser.parse_args(argv)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (value := int(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from {low} to {high}")

    return parse
