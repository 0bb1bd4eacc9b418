"""A folder of generated images: a file for each, and a manifest that says where each comes from."""

import csv
import functools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from jax.sharding import Mesh

from medgan_jax.checkpoint import TrainedGenerator
from medgan_jax.data.dicom import import_pydicom
from medgan_jax.data.dicom_writer import encode_dicom
from medgan_jax.errors import UserError, naming
from medgan_jax.files import is_litter, lock, replace_file
from medgan_jax.images import image_grid, write_png
from medgan_jax.metrics.distribution.guard import Guard
from medgan_jax.progress import progress_bar
from medgan_jax.provenance import png_text
from medgan_jax.sampling import accepted_attempts, classes_of, numbered_batches, sample_batches, truncated_variables

MANIFEST = "manifest.csv"
GRID = "grid.png"
_DEFAULT_IMAGES = 64
_GRID_IMAGES = 64
_OURS = re.compile(rf"\d{{6,}}\.(png|dcm)|{GRID}|{MANIFEST}")
_BUSY = "{}: another process is writing images there; wait for it, or give another folder"
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp")


class Written(NamedTuple):
    """What `sample_to_folder` has written.

    Attributes:
      manifest: the file that names the images.
      num_images: how many.
      rejected: how many draws the guard has rejected; None where there was none.
    """

    manifest: Path
    num_images: int
    rejected: int | None


def sample_to_folder(
    generator: TrainedGenerator,
    out: Path,
    *,
    num_images: int | None,
    seed: int,
    batch_size: int,
    mesh: Mesh,
    latents: np.ndarray | None = None,
    grid: bool = False,
    overwrite: bool = False,
    prefix: str = "",
    label: str | None = None,
    truncation: float | None = None,
    format: str = "png",
    guard: Guard | None = None,
) -> Written:
    """Writes files 000000.png, 000001.png, ... and manifest.csv with the origin of each.

    Args:
      generator: what to sample from.
      out: the folder; created when missing.
      num_images: how many; None for one for each latent, or 64.
      seed: image i depends on (seed, i), the generator and its guard alone.
      batch_size: images at once.
      mesh: the devices.
      latents: (at least num_images, latent_dim), used in order instead of a seed.
      grid: also write the first images as one picture, grid.png.
      overwrite: first remove the files of an earlier run, where its manifest is.
      prefix: with one, the names are PREFIX_000000.png, ..., and `out` may hold other files.
      label: the class of all images; None for all that the generator has learned, image i of class i modulo their
        number. The latents are the same either way.
      truncation: of the latents, see `seeded_latents`; goes with a seed.
      format: "png", or one of `dicom_writer.SOP_CLASSES`, whose files end in .dcm.
      guard: draws images again that are too close to a training image; goes with a seed.

    Raises:
      UserError: the generator has not learned the class; there are fewer latents than images asked for; `format` needs
        pydicom, which is not installed; `out` is a file, or holds anything (with `prefix`, anything named as ours)
        and `overwrite` is off, or holds such files without a manifest; or the guard lets no draw of an image pass.
    """
    lead = f"{prefix}_" if prefix else ""
    manifest_path = out / (lead + MANIFEST)
    if num_images is None:
        num_images = _DEFAULT_IMAGES if latents is None else len(latents)
    if latents is not None and num_images > len(latents):
        raise UserError(f"--num_images={num_images}, but --latents has {len(latents)} rows")
    labels_of = classes_of(generator, label)
    if format != "png":
        import_pydicom()
    present = _check_folder(out, overwrite, lead)
    variables = truncated_variables(generator, truncation)
    options: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh, "labels_of": labels_of}
    attempts = np.zeros(num_images, np.int32)
    if guard:
        attempts = accepted_attempts(
            generator, variables, guard, num_images, seed=seed, truncation=truncation, **options
        )
    _clear_folder(out, lead, present)
    if latents is not None:
        latents_of = functools.partial(np.take, latents, axis=0, mode="clip")
        batches = sample_batches(generator.module, variables, latents_of, num_images, **options)
    else:
        indices = np.arange(num_images, dtype=np.int32)
        batches = numbered_batches(generator, variables, indices, attempts, seed=seed, truncation=truncation, **options)

    source = "" if latents is not None else seed

    def origin(index: int) -> tuple:
        of_class = generator.classes[labels_of(np.array([index]))[0]] if labels_of else ""
        attempt = attempts[index] if guard else ""
        return source, index, generator.step, generator.digest, of_class, truncation, attempt

    def write(index: int, image: np.ndarray) -> str:
        name = f"{lead}{index:06d}.{'png' if format == 'png' else 'dcm'}"
        of_image = generator.provenance(
            seed=None if latents is not None else seed,
            index=index,
            label=origin(index)[4],
            truncation=truncation,
            attempt=int(attempts[index]),
        )
        if format == "png":
            write_png(out / name, image, png_text(of_image))
        else:
            replace_file(out / name, encode_dicom(image, kind=format, provenance=of_image))
        return name

    done = 0
    first_images: list[np.ndarray] = []
    with (
        naming(manifest_path),
        ThreadPoolExecutor() as pool,
        _new_manifest(manifest_path) as file,
        progress_bar(num_images, unit="image", desc="sampling") as bar,
    ):
        manifest = csv.writer(file)
        manifest.writerow(("file", "seed", "index", "step", "digest", "label", "truncation", "attempt"))
        for batch in batches:
            for name in pool.map(write, range(done, done + len(batch)), batch):
                manifest.writerow((name, *origin(done)))  # only of an image that is on the disk
                done += 1
            if grid:
                first_images.extend(batch[: _GRID_IMAGES - len(first_images)])
            bar.update(len(batch))
    if grid:
        write_png(out / (lead + GRID), image_grid(np.stack(first_images)), png_text())
    return Written(manifest_path, num_images, int(attempts.sum()) if guard else None)


def _check_folder(out: Path, overwrite: bool, lead: str) -> set[str]:
    """The files of an earlier run in a folder, which may be removed; the folder is made when missing."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another folder") from error
    ours = {name for name in present if name.startswith(lead) and _OURS.fullmatch(name, len(lead))}
    if lead:
        present = ours
    else:
        # An earlier run may have been killed: what it was writing is in no manifest, but named as we name.
        ours |= {name for name in present if _UNFINISHED.fullmatch(name)}
        present = {name for name in present if name in ours or not is_litter(name)}
    if not present:
        return set()
    if not overwrite:
        named = f" named {lead}..." if lead else ""
        raise UserError(f"{out}: holds {len(present)} files{named} already; give another folder, or --overwrite")
    foreign = sorted(present - ours if lead + MANIFEST in present else present)
    if foreign:
        raise UserError(
            f"{out}: {len(foreign)} files there, such as {foreign[0]}, are not of an earlier run of ours; "
            "give another folder"
        )
    return ours


def _clear_folder(out: Path, lead: str, names: set[str]) -> None:
    """Removes files of an earlier run. Raises UserError where a process is writing them."""
    if not names:
        return
    with open(out / (lead + MANIFEST), "a") as manifest:
        lock(manifest, _BUSY.format(out))
        for name in names:
            (out / name).unlink()


def _new_manifest(path: Path) -> TextIO:
    """Opens it for writing, locked until it is closed. Raises UserError where another process was faster."""
    try:
        file = open(path, "x", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except FileExistsError:
        raise UserError(_BUSY.format(path.parent)) from None
    lock(file, _BUSY.format(path.parent))
    return file
