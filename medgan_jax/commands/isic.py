"""Packs a year of the ISIC challenge into a TFDS data set: a few files, which travel and read faster than thousands.

Download the images and the ground truth of the year from https://challenge.isic-archive.com/data first. Then:

    medgan isic --images=DIR --labels=CSV --out=TFDS_DIR --year=2016
    medgan train ... --config.data.source=tfds --config.data.tfds_name=isic/2016 --config.data.path=TFDS_DIR
"""

import argparse

from medgan_jax.cli import PathFlag
from medgan_jax.errors import ArgumentParser, UserError


def main(argv: list[str]) -> None:
    """Prepares the data set that the command line describes.

    Raises:
      UserError: images and labels cannot be read or do not match, or the data set is there already.
    """
    from medgan_jax.data.isic import YEARS, Isic
    from medgan_jax.data.labels import match_labels, read_labels
    from medgan_jax.data.sources import list_images

    parser = ArgumentParser(
        prog="medgan isic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", action=PathFlag, required=True, help="folder of images")
    parser.add_argument("--labels", action=PathFlag, required=True, help="table of image names and labels, CSV")
    parser.add_argument("--out", action=PathFlag, required=True, help="folder for TFDS data sets")
    parser.add_argument("--year", choices=YEARS, default="2016", help="of the challenge")
    parser.add_argument("--image_column", default="image", help="of the table, if it has a header")
    parser.add_argument("--label_column", default="label", help="of the table, if it has a header")
    args = parser.parse_args(argv)

    names = list_images(args.images, field="--images")
    table = read_labels(args.labels, image_column=args.image_column, label_column=args.label_column, prefix="--")
    labels = match_labels(names, table, folder=args.images, table_path=args.labels)
    builder = Isic(
        folder=args.images,
        labels=dict(zip(names, labels, strict=True)),
        config=args.year,
        data_dir=args.out,
        file_format="array_record",
    )
    if builder.is_prepared():
        raise UserError(f"--out={args.out} already holds {builder.data_dir}: remove that, or give another folder")
    builder.download_and_prepare()
    print(f"{len(names)} images in {builder.data_dir}. To train on them:")
    print(f"  --config.data.source=tfds --config.data.tfds_name=isic/{args.year} --config.data.path={args.out}")
