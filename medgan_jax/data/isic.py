"""The ISIC archive of skin lesion images as a TFDS data set; `medgan isic` prepares it.

Gutman et al. (2016), "Skin Lesion Analysis toward Melanoma Detection: A Challenge at ISBI 2016, hosted by
the International Skin Imaging Collaboration (ISIC)", arXiv:1605.01397.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from medgan_jax.data.dicom import public_name
from medgan_jax.data.sources import FileSource
from medgan_jax.errors import UserError, abbreviate
from medgan_jax.image_files import DICOM, HEAD, ImageError, inspect_image, recognise

if __name__ == "__main__":
    # Scripts run `python -m medgan_jax.data.isic`. The command lies above this layer, so it is imported then alone; and
    # before the class below, which TFDS lets nobody define twice.
    import sys

    from medgan_jax import cli

    cli.main(["isic", *sys.argv[1:]])

YEARS = ("2016", "2017", "2018", "2019", "2020")


def refuse_unpackable(source: FileSource) -> None:
    """Refuses files that no record should hold: synthetic images, several frames, DICOM, whose headers would go along.

    Files that cannot be read are for others to refuse.

    Raises:
      UserError: there are any, of these kinds.
    """
    dicom, synthetic, of_frames = [], [], []
    for index, name in enumerate(source.names):
        with contextlib.suppress(ImageError, OSError), open(source.path(index), "rb") as file:
            if recognise(file.read(HEAD)) == DICOM:
                dicom.append(public_name(name))
            elif (info := inspect_image(source.path(index))).synthetic:
                synthetic.append(name)
            elif info.frames > 1:
                of_frames.append(f"{name} ({info.frames})")
    many = f"of {len(source)} images in {source.root}"
    if dicom:
        raise UserError(
            f"{len(dicom)} {many} are DICOM, whose headers would be packed too: {abbreviate(dicom)}, which python -m "
            f"medgan_jax.data.dicom {source.root} NAME finds; train on the folder, with data.source=csv or folder"
        )
    if synthetic:
        raise UserError(f"{len(synthetic)} {many} are marked as synthetic: {abbreviate(synthetic)}; leave them out")
    if of_frames:
        raise UserError(
            f"{len(of_frames)} {many} have several pages or frames: {abbreviate(of_frames)}; convert them to files of "
            "one, or leave them out of the folder"
        )


class Isic(tfds.core.GeneratorBasedBuilder):
    """One challenge year; each record is an encoded image, its file name and its label."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=year) for year in YEARS]

    def __init__(self, *, folder: str = "", labels: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        """To prepare it takes the folder of the images, and their labels by their paths below it.

        Give `file_format="array_record"` too: "parquet" loses records (TFDS 4.9), and "tfrecord" needs TensorFlow.
        """
        self._folder, self._labels = folder, labels or {}
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
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, Any]]:
        for name, label in self._labels.items():
            # Bytes, not pixels: nothing is decoded, so nothing is lost and TensorFlow is not needed.
            yield name, {"image": Path(self._folder, name).read_bytes(), "name": name, "label": label}
