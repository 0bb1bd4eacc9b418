#!/usr/bin/env python3
"""Judges generated images: every measure of the fakes beside its floor, the same measure between reals.

python evaluate.py --checkpoint=runs/melanoma                     against what its training held out
python evaluate.py --checkpoint=runs/melanoma --reals=/data/heldout --train=/data/isic
python evaluate.py --checkpoint=runs/lesions --label=malignant    one class of a conditional training
python evaluate.py --fakes=synthetic --reals=/data/isic --data.class_filter=malignant

--data.FIELD says how to read the reals, as --config.data.FIELD does for train.py: see configs/default.py.
"""

from pathlib import Path

from absl import flags

from configs import default
from medgan_jax import cli

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, generator folder or .pth file to sample from.")
_FAKES = flags.DEFINE_string("fakes", None, "A folder of generated images, in place of a checkpoint.")
_REALS = flags.DEFINE_string("reals", None, "Reals to judge by; by default what the training held out.")
_TRAIN = flags.DEFINE_string("train", None, "The training images, to look for copies of them.")
_DATA = cli.define_data(default.get_config().data)
_LABEL = flags.DEFINE_string("label", None, "Of a conditional training: judge this class alone, by reals of it.")
_OUT = flags.DEFINE_string(
    "out", None, "Where evaluation.json and .html go; by default evaluation, within CHECKPOINT where that is a folder."
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "How many to sample; by default as many as its floor.", 2, 20_000
)
_PAIRING = flags.DEFINE_enum(
    "pairing", "nearest", ("nearest", "random", "medimagegan"), "Which real each image is compared with in pairs."
)
_FEATURES = flags.DEFINE_enum(
    "features", None, ("pyramid", "pixels", "inception"), "What KID, FID, precision and recall see; pyramid by default."
)
_WEIGHTS = flags.DEFINE_string("inception_weights", None, "pt_inception-2015-12-05-6726825d.pth, or an .npz of it.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides samples, halves, pairs and resampling.", 0, 2**32 - 1)


def main() -> None:
    """Flags to sets of images to figures."""
    from medgan_jax.evaluation import image_sets, page
    from medgan_jax.evaluation.protocol import evaluate

    features = image_sets.choose_features(_FEATURES.value, _WEIGHTS.value)
    judged = image_sets.choose(
        checkpoint=_CHECKPOINT.value,
        fakes=_FAKES.value,
        reals=_REALS.value,
        train=_TRAIN.value,
        data=_DATA.value.to_dict(),
        num_images=_NUM_IMAGES.value,
        seed=_SEED.value,
        label=_LABEL.value,
    )
    place = Path(_CHECKPOINT.value or ".")
    out = Path(_OUT.value or (place if place.is_dir() else Path(".")) / "evaluation")
    page.prepare(out)
    result = evaluate(*judged, pairing=_PAIRING.value, features=features, seed=_SEED.value)
    page.write(result, out)
    print(page.table(result))
    print(f"\nLook at {out / page.PAGE}; the figures are in {out / page.JSON}")


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
