"""Compares generated images with real ones: every metric of the fakes beside the same metric between reals.

python evaluate.py --checkpoint=runs/melanoma                     with what its run held out
python evaluate.py --checkpoint=runs/melanoma --reals=/data/heldout --train=/data/isic
python evaluate.py --checkpoint=runs/lesions --label=malignant    one class of a conditional run
python evaluate.py --fakes=synthetic --reals=/data/isic --data.class_filter=malignant

--data.FIELD says how to read the reals, as --config.data.FIELD does for train.py.
"""

from pathlib import Path
from typing import Any

from absl import flags

from medgan_jax import cli


def main(argv: list[str]) -> None:
    """Parses the flags, reads the sets of images, and writes the comparison."""
    values = flags.FlagValues()
    argv = cli.define_data_flags(values, argv, "how to read the reals, as --data.FIELD=VALUE")
    define: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("checkpoint", None, "a workdir, generator folder or .pth file to sample from", **define)
    flags.DEFINE_string("fakes", None, "a folder of generated images, in place of a checkpoint", **define)
    flags.DEFINE_string("reals", None, "real images; by default what the run held out", **define)
    flags.DEFINE_string("train", None, "the training images, to look for memorization", **define)
    flags.DEFINE_string("label", None, "conditional: evaluate this class alone, with reals of it", **define)
    flags.DEFINE_string(
        "out", None, "where evaluation.json and .html go; by default evaluation, in CHECKPOINT if it is a folder",
        **define,
    )  # fmt: skip
    flags.DEFINE_integer("num_images", None, "how many to sample; by default as many as reals", 2, 20_000, **define)
    flags.DEFINE_enum(
        "pairing", "nearest", ("nearest", "random", "medimagegan"), "which real each fake is paired with", **define
    )
    flags.DEFINE_string(
        "features", None, "of KID, FID, precision, recall, density, coverage: efficientnet-lite1 (by default), "
        "efficientnet-lite0, pyramid, pixels, inception (where its weights are given), or MODULE:FUNCTION, a function "
        "of yours from uint8 images (N, H, W, C) to vectors (N, D)", **define,
    )  # fmt: skip
    flags.DEFINE_string("inception_weights", None, "pt_inception-2015-12-05-6726825d.pth, or an .npz of it", **define)
    flags.DEFINE_integer("seed", 0, "decides samples, halves, pairs and resampling", 0, 2**32 - 1, **define)
    cli.parse_flags(values, argv, doc=__doc__)

    from medgan_jax.evaluation import image_sets, page
    from medgan_jax.evaluation.protocol import evaluate
    from medgan_jax.models.efficientnet_lite import load_efficientnet_lite
    from medgan_jax.report.card import write_card
    from medgan_jax.sharding import announce_devices
    from medgan_jax.workdir import Workdir

    paths = {
        name: values[name].value and str(cli.given_path(name, values[name].value))
        for name in ("checkpoint", "fakes", "reals", "train", "out", "inception_weights")
    }
    announce_devices()
    out = paths.pop("out")
    features = image_sets.choose_features(values.features, paths.pop("inception_weights"))
    load_efficientnet_lite("lite1")  # which the search for copies needs: where it is missing, nothing is sampled
    sets = image_sets.choose(
        **paths,
        data=values.data.to_dict(),
        num_images=values.num_images,
        seed=values.seed,
        label=values.label,
        features=features.name,
    )
    place = Path(paths["checkpoint"] or ".")
    out = Path(out or (place if place.is_dir() else Path(".")) / "evaluation")
    page.prepare(out)
    report = evaluate(*sets, pairing=values.pairing, features=features, seed=values.seed)
    page.write(report, out)
    if (files := Workdir(place)).generator.is_dir() and files.config.exists() and out == place / "evaluation":
        write_card(files)
    print(report)
    print(f"\nLook at {out / page.PAGE}; the figures are in {out / page.JSON}")
