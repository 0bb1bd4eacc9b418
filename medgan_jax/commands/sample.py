"""Samples images from a trained generator: PNG or DICOM files, and manifest.csv with the origin of each.

python sample.py --checkpoint=runs/melanoma --num_images=1000 --out=synthetic --seed=0
python sample.py --config=configs/control_file.py:generate.yaml   a control file of MedImageGAN, as it is
python sample.py --checkpoint=runs/lesions --label=malignant --out=synthetic   of one class; without, all in turn
python sample.py --checkpoint=runs/melanoma --format=dicom --out=synthetic     marked as synthetic, of no patient
python sample.py --checkpoint=runs/melanoma --interpolate=walk.mp4 --num_images=8   a movie from image to image

Image i depends on the generator, its guard, the seed, the class and i alone, whatever the batch size and number of
devices. The guard draws copies of training images again; see docs/privacy.md.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from medgan_jax import cli
from medgan_jax.errors import UserError
from medgan_jax.files import local_path


def main(argv: list[str]) -> None:
    """Parses the flags, loads the generator, and writes images."""
    values = flags.FlagValues()
    config, argv = cli.load_config(argv)
    define: dict[str, Any] = {"flag_values": values}
    config_flags.DEFINE_config_dict(
        "config",
        config or ConfigDict(),
        help_string="a control file, in place of --checkpoint and --out",
        lock_config=True,
        sys_argv=["medgan", *argv],
        **define,
    )
    flags.DEFINE_string("checkpoint", None, "a workdir, a generator folder or a .pth file", **define)
    flags.DEFINE_string("out", None, "the folder for the images; made when missing, refused when not empty", **define)
    flags.DEFINE_integer("num_images", None, "how many; by default 64, or as many as there are latents", 1, **define)
    flags.DEFINE_integer("seed", None, "decides the latents; by default 0", 0, 2**32 - 1, **define)
    flags.DEFINE_integer("batch_size", 64, "images at once, over all devices; for speed and memory", 1, **define)
    flags.DEFINE_bool("grid", False, "also write the first 64 images as one picture, grid.png", **define)
    flags.DEFINE_string("latents", None, "a .npy file of (N, latent_dim) latents in place of a seed", **define)
    flags.DEFINE_string(
        "label", None, "conditional: the class; by default all in turn, for a movie the first", **define
    )
    flags.DEFINE_float(
        "truncation",
        None,
        "cut off the latents' tails there, such as 1 or 2; with batch normalisation changes little",
        **define,
    )
    flags.DEFINE_enum(
        "format",
        "png",
        ["png", "dicom", "dicom-dermoscopic"],
        "of the images; dicom: Secondary Capture, dicom-dermoscopic: Dermoscopic Photography; needs pydicom",
        **define,
    )
    flags.DEFINE_string(
        "interpolate", None, "a .webp, .gif or .mp4 file in place of --out: each image turns into the next", **define
    )
    flags.DEFINE_bool(
        "guard",
        None,
        "draw images again that are closer to a training image than unseen real images are; by default where "
        "guard.npz is in the workdir, or in the generator's folder; not with --latents, nor the images of a movie",
        **define,
    )
    flags.DEFINE_bool("overwrite", False, "first remove an earlier run's files from the output folder", **define)
    cli.parse_flags(values, argv, doc=__doc__)

    from medgan_jax.checkpoint import load_generator
    from medgan_jax.interpolation import movie_path, write_walk
    from medgan_jax.sample_folder import sample_to_folder
    from medgan_jax.sampling import check_truncation, load_latents, open_guard
    from medgan_jax.sharding import announce_devices, check_batch_size, data_mesh, replicated

    movie = movie_path(values.interpolate, grid=values.grid, overwrite=values.overwrite)
    if movie and values.out is not None:
        raise UserError(f"--out={values.out}: --interpolate writes its movie only; leave out one of them")
    if movie and values.guard:
        raise UserError("--guard: is of images, and --interpolate writes a movie; leave out one of them")
    if movie and values.format != "png":
        raise UserError(
            f"--format={values.format}: is of images, and --interpolate writes a movie; leave out one of them"
        )
    num_images, seed, prefix, image_size = values.num_images, values.seed, "", None
    if config is None:
        checkpoint = cli.given_path("checkpoint", values.checkpoint)
        out = Path() if movie else cli.given_path("out", values.out)
    else:
        from medgan_jax.compat.medimagegan.control_file import check_sampling

        control = check_sampling(values.config, checkpoint=values.checkpoint, out=values.out)
        checkpoint, out = local_path("path", control.path), local_path("out", control.out)
        num_images = control.quantity if num_images is None and not movie else num_images
        seed = control.seed if seed is None else seed
        prefix, image_size = control.run, control.image_size
    mesh = data_mesh()
    announce_devices()
    check_batch_size(values.batch_size, mesh)
    generator = load_generator(checkpoint, replicated(mesh))
    if image_size not in (None, generator.module.image_size):
        raise UserError(
            f"image_size={image_size} in the control file, but the images of {checkpoint} have "
            f"{generator.module.image_size} px: correct image_size, or give another path"
        )
    latents = None
    if values.latents:
        latents = load_latents(cli.given_path("latents", values.latents), generator.latent_dim)
    check_truncation(values.truncation, latents)
    what = {
        "num_images": num_images, "seed": seed or 0, "batch_size": values.batch_size, "latents": latents,
        "label": values.label, "truncation": values.truncation, "mesh": mesh,
    }  # fmt: skip
    if movie:
        write_walk(generator, movie, **what)
        print(f"wrote {movie}")
        return
    written = sample_to_folder(
        generator, out, **what, grid=values.grid, overwrite=values.overwrite, prefix=prefix, format=values.format,
        guard=open_guard(values.guard, generator, latents),
    )  # fmt: skip
    print(f"wrote the images that {written.manifest} names{', and a grid of them' if values.grid else ''}")
    if (rejected := written.rejected) is not None:
        draws = written.num_images + rejected
        print(
            f"the guard rejected {rejected} of {draws} draws ({rejected / draws:.1%}) as too close to a training image"
        )
