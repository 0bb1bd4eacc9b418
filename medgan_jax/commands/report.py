"""Writes the report of a training: report.html in its workdir, one page that needs no other file and no network.

medgan report runs/melanoma
medgan report runs/melanoma --serve
medgan report runs/melanoma --plots --movie=melanoma.webp
"""

import argparse
import contextlib
from pathlib import Path

from medgan_jax.cli import PathFlag
from medgan_jax.errors import ArgumentParser, UserError


def main(argv: list[str]) -> None:
    """Writes, or serves, what the command line asks for."""
    args = _parse(argv)
    from medgan_jax.movie import check_movie_path, write_movie
    from medgan_jax.report.frames import movie_frames
    from medgan_jax.report.page import write_report
    from medgan_jax.report.plots import write_plots
    from medgan_jax.report.record import read_record
    from medgan_jax.report.server import serve
    from medgan_jax.workdir import Workdir

    files = Workdir(Path(args.workdir))
    record = read_record(files)
    if args.movie:
        check_movie_path(Path(args.movie))
    if args.plots:
        for path in write_plots(files):
            print(path)
    if args.movie:
        if not record.pictures:
            raise UserError(f"--movie: {files.samples} holds no pictures yet")
        write_movie(Path(args.movie), movie_frames(record.pictures), frames_per_second=args.fps)
        print(args.movie)
    if args.serve:
        serve(files, port=args.port)
    elif args.out or not (args.plots or args.movie):
        print(write_report(files, Path(args.out) if args.out else None))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="medgan report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", action=PathFlag, help="of a training")
    parser.add_argument("--out", action=PathFlag, help="the file to write; by default WORKDIR/report.html")
    parser.add_argument("--plots", action="store_true", help="write WORKDIR/plots/*.png in place of the report")
    parser.add_argument(
        "--movie", action=PathFlag, help="write the pictures as .webp, .gif or .mp4 in place of the report"
    )
    parser.add_argument("--fps", type=_above_0, default=10.0, help="pictures a second of the movie")
    parser.add_argument("--serve", action="store_true", help="show the report live, to this machine's browsers only")
    parser.add_argument("--port", type=_port, default=8000, help="for --serve; 0: any that is free")
    return parser.parse_args(argv)


def _above_0(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 240:
            return value
    raise argparse.ArgumentTypeError(f"{text} must be a number above 0, at most 240")


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 <= (value := int(text)) < 2**16:
            return value
    raise argparse.ArgumentTypeError(f"{text} must be a whole number from 0 to 65535")
