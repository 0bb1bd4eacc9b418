#!/usr/bin/env python3
"""Samples images from a trained generator: PNG files, and manifest.csv with the origin of each.

python sample.py --checkpoint=runs/melanoma --num_images=1000 --out=synthetic --seed=0
python sample.py --config=configs/control_file.py:generate.yaml   a control file of MedImageGAN, as it is
python sample.py --checkpoint=runs/lesions --label=malignant --out=synthetic   of one class; without, all in turn
python sample.py --checkpoint=runs/melanoma --interpolate=walk.mp4 --num_images=8   a movie from image to image

Image i depends on the generator, the seed, the class and i alone, whatever the batch size and number of devices.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from medgan_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A control file, in place of --checkpoint and --out.", lock_config=True
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A training's workdir, a generator folder or a .pth file.")
_OUT = flags.DEFINE_string("out", None, "The folder for the images; made when missing, refused when not empty.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "How many; 64 by default, or as many as there are latents.", 1)
_SEED = flags.DEFINE_integer("seed", None, "Decides the latents; 0 by default.", 0, 2**32 - 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images at once, over all devices; changes speed and memory.", 1)
_GRID = flags.DEFINE_bool("grid", False, "Also write the first 64 images as one picture, grid.png.")
_LATENTS = flags.DEFINE_string("latents", None, "A .npy file of (N, latent_dim) latents to use instead of a seed.")
_LABEL = flags.DEFINE_string(
    "label", None, "Of a conditional training: the class; by default all in turn, and the first for a movie."
)
_TRUNCATION = flags.DEFINE_float("truncation", None, "Cut off the latents' tails there: 2 is less varied, 1 paler.")
_INTERPOLATE = flags.DEFINE_string(
    "interpolate", None, "A .webp, .gif or .mp4 file, instead of --out: each image turns into the next; 8 by default."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove an earlier run's files from the output folder first.")


def main() -> None:
    """Flags to generator to images."""
    from medgan_jax.checkpoint import load_generator
    from medgan_jax.compat.medimagegan.control_file import plan_sampling
    from medgan_jax.interpolation import movie_path, write_walk
    from medgan_jax.sampling import check_truncation, load_latents, sample_to_folder
    from medgan_jax.sharding import check_batch_size, data_mesh, replicated

    movie = movie_path(_INTERPOLATE.value, grid=_GRID.value, overwrite=_OVERWRITE.value)
    plan = plan_sampling(
        _CONFIG.value,
        checkpoint=_CHECKPOINT.value,
        out=_OUT.value,
        num_images=_NUM_IMAGES.value,
        seed=_SEED.value,
        movie=movie is not None,
    )
    mesh = data_mesh()
    check_batch_size(_BATCH_SIZE.value, mesh)
    generator = load_generator(plan.checkpoint, replicated(mesh))
    plan.check_size(generator.module.image_size)
    latents = load_latents(Path(_LATENTS.value), generator.latent_dim) if _LATENTS.value else None
    of = {"num_images": plan.num_images, "seed": plan.seed, "batch_size": _BATCH_SIZE.value, "latents": latents}
    check_truncation(_TRUNCATION.value, latents)
    of |= {"label": _LABEL.value, "truncation": _TRUNCATION.value}
    if movie:
        write_walk(generator, movie, **of, mesh=mesh)
        print(f"wrote {movie}")
        return
    manifest = sample_to_folder(
        generator, plan.out, **of, mesh=mesh, grid=_GRID.value, overwrite=_OVERWRITE.value, prefix=plan.prefix
    )
    print(f"wrote the images that {manifest} names{', and a grid of them' if _GRID.value else ''}")


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
