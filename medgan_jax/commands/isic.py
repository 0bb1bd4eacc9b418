"""Packs a year of the ISIC challenge into a TFDS data set: a few files, which travel and read faster than thousands.

Download the images and the ground truth of the year from https://challenge.isic-archive.com/data first; the table is
read as it is published. Each image is decoded once, so that none that is damaged is packed. Then:

    medgan isic --images=DIR --labels=CSV --out=TFDS_DIR --year=2016
    medgan train ... --config.data.source=tfds --config.data.tfds_name=isic/2016 --config.data.path=TFDS_DIR
"""

import argparse
import functools

from medgan_jax.cli import PathFlag
from medgan_jax.errors import ArgumentParser, UserError


def main(argv: list[str]) -> None:
    """Prepares the data set that the command line describes.

    Raises:
      UserError: images and labels cannot be read or do not match, images are DICOM or have several frames, or the
        data set is there already.
    """
    from medgan_jax.data.cache import readable_images
    from medgan_jax.data.isic import YEARS, Isic, refuse_unpackable
    from medgan_jax.data.labels import match_labels, read_labels
    from medgan_jax.data.listing import find_annotations
    from medgan_jax.data.sources import FileSource, list_images

    parser = ArgumentParser(
        prog="medgan isic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", action=PathFlag, required=True, help="folder of images")
    parser.add_argument("--labels", action=PathFlag, required=True, help="table of image names and labels, CSV")
    parser.add_argument("--out", action=PathFlag, required=True, help="folder for TFDS data sets")
    parser.add_argument("--year", choices=YEARS, default="2016", help="of the challenge")
    parser.add_argument("--image_column", default="image", help="of the table, as data.image_column of a training")
    parser.add_argument("--label_column", default="label", help="of the table, as data.label_column of a training")
    for name, what in (
        ("--on_missing", "rows without an image, and images without a row or label"),
        ("--on_bad_image", "images that cannot be read"),
    ):
        parser.add_argument(name, choices=("refuse", "skip"), default="refuse", help=f"what to do about {what}")
    args = parser.parse_args(argv)

    names = list_images(args.images, field="--images")
    annotations = find_annotations(names)  # ISIC 2017 has superpixels beside each image
    if annotations:
        patterns = ", ".join(dict.fromkeys(annotations.values()))
        print(f"left out: {len(annotations)} masks or annotations of others by their names: {patterns}")
    pictures = [name for name in names if name not in annotations]
    refuse_unpackable(FileSource(args.images, tuple(pictures)))  # before a message could quote names of DICOM files
    table = read_labels(args.labels, image_column=args.image_column, label_column=args.label_column, prefix="--")
    rows = match_labels(
        pictures, table, folder=args.images, table_path=args.labels, on_missing=args.on_missing, prefix="--"
    )
    make_builder = functools.partial(Isic, config=args.year, data_dir=args.out, file_format="array_record")
    if (there := make_builder()).is_prepared():
        raise UserError(f"--out={args.out} already holds {there.data_dir}: remove that, or give another folder")
    source = FileSource(args.images, tuple(rows))
    packed = readable_images(source, on_bad_image=args.on_bad_image, setting="--on_bad_image").names
    builder = make_builder(folder=args.images, labels={name: rows[name].label for name in packed})
    builder.download_and_prepare()
    print(f"{len(packed)} images in {builder.data_dir}. To train on them:")
    print(f"  --config.data.source=tfds --config.data.tfds_name=isic/{args.year} --config.data.path={args.out}")
