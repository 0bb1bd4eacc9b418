"""The ISIC archive of skin lesion images as a TFDS data set.

The images and the ground truth of a challenge year are downloaded by hand from https://challenge.isic-archive.com/data.
This packs them into a few files, which travel and read faster than thousands:

    python -m medgan_jax.data.isic --images=DIR --labels=CSV --out=TFDS_DIR --year=2016
    python train.py ... --config.data.source=tfds --config.data.tfds_name=isic/2016 --config.data.path=TFDS_DIR

    Gutman et al. (2016), "Skin Lesion Analysis toward Melanoma Detection: A Challenge at ISBI 2016, hosted by
    the International Skin Imaging Collaboration (ISIC)", arXiv:1605.01397.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from medgan_jax.data.labels import match_labels, read_labels
from medgan_jax.data.sources import list_images
from medgan_jax.errors import ArgumentParser, UserError, reported

YEARS = ("2016", "2017", "2018", "2019", "2020")


class Isic(tfds.core.GeneratorBasedBuilder):
    """One challenge year; each record is an encoded image, its file name and its label.

    Images and labels are those given, or else `images/` and `labels.csv` in TFDS's manual folder.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=year) for year in YEARS]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download a year's training images and ground truth from https://challenge.isic-archive.com/data, and "
        "lay them down as images/ and labels.csv."
    )

    def __init__(
        self,
        *,
        images: str = "",
        labels: str = "",
        image_column: str = "image",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        """Takes the folder of images, the table of labels and its columns, and TFDS's own arguments."""
        self._images, self._labels = images, labels
        self._columns = {"image_column": image_column, "label_column": label_column}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://challenge.isic-archive.com/data",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "name": tfds.features.Text(),
                    "label": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = self._images or str(dl_manager.manual_dir / "images")
        table_path = self._labels or str(dl_manager.manual_dir / "labels.csv")
        table = read_labels(table_path, prefix="--", **self._columns)
        names = list_images(folder, field="--images")
        labels = match_labels(names, table, folder=folder, table_path=table_path)
        return {"train": self._generate_examples(folder, names, labels)}

    def _generate_examples(self, folder: str, names: list[str], labels: list[str]) -> Iterator[tuple[str, Any]]:
        for name, label in zip(names, labels, strict=True):
            # Bytes, not pixels: nothing is decoded, so nothing is lost and TensorFlow is not needed.
            yield name, {"image": Path(folder, name).read_bytes(), "name": name, "label": label}


def main(argv: list[str] | None = None) -> None:
    """Prepares the data set that the command line describes."""
    parser = ArgumentParser(prog="python -m medgan_jax.data.isic", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=os.path.expanduser, required=True, help="folder of images")
    parser.add_argument("--labels", type=os.path.expanduser, required=True, help="table of image names and labels, CSV")
    parser.add_argument("--out", type=os.path.expanduser, required=True, help="folder for TFDS data sets")
    parser.add_argument("--year", choices=YEARS, default="2016", help="of the challenge")
    parser.add_argument("--image_column", default="image", help="of the table, if it has a header")
    parser.add_argument("--label_column", default="label", help="of the table, if it has a header")
    args = parser.parse_args(argv)

    list_images(args.images, field="--images")  # before anything is written
    read_labels(args.labels, image_column=args.image_column, label_column=args.label_column, prefix="--")
    builder = Isic(
        images=args.images,
        labels=args.labels,
        image_column=args.image_column,
        label_column=args.label_column,
        config=args.year,
        data_dir=args.out,
        file_format="array_record",  # parquet loses records (TFDS 4.9), tfrecord needs TensorFlow
    )
    if builder.is_prepared():
        raise UserError(f"--out={args.out} already holds {builder.data_dir}: remove that, or give another folder")
    builder.download_and_prepare()
    number = builder.info.splits["train"].num_examples
    print(f"{number} images in {builder.data_dir}. To train on them:")
    print(f"  --config.data.source=tfds --config.data.tfds_name=isic/{args.year} --config.data.path={args.out}")


if __name__ == "__main__":
    with reported():
        main()
