"""What each metric is sensitive to, and which copies of training images are found: the tables of docs/metrics.md.

python -m benchmarks.sensitivity --reals=/data/isic --picture=docs/images/metrics.png
python -m benchmarks.sensitivity --generators=runs/small64,runs/sngan_small64 --picture=docs/images/ranking.png

Degrades real images in known ways and compares them with others; or ranks generators of equal data by KID, beside
reals, by each kind of features. Prints Markdown.
"""

import argparse
import io
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageEnhance

from configs import default
from medgan_jax.config import parse_data
from medgan_jax.data.batches import load_dataset
from medgan_jax.errors import reported
from medgan_jax.evaluation import image_sets
from medgan_jax.evaluation.image_sets import ImageSet
from medgan_jax.evaluation.protocol import evaluate
from medgan_jax.evaluation.report import Report
from medgan_jax.images import image_grid, uint8_to_unit, write_png
from medgan_jax.metrics.distribution.features import PIXELS, PYRAMID, efficientnet_features
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.metrics.distribution.memorization import CopySearch, copying_z, memorized, turned
from medgan_jax.metrics.paired import METRICS

_NOISE = 0.05  # of white, the standard deviation


def _noisy(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 255 * _NOISE, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def _blurred(images: np.ndarray) -> np.ndarray:
    """Means of 5 x 5 px."""
    _, height, width, _ = images.shape
    padded = np.pad(images.astype(np.float32), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    shifts = [padded[:, i : i + height, j : j + width] for i in range(5) for j in range(5)]
    return np.mean(shifts, 0).round().astype(np.uint8)


def _dark(images: np.ndarray) -> np.ndarray:
    return (0.7 * images).round().astype(np.uint8)


def _mirrored(images: np.ndarray) -> np.ndarray:
    return images[:, :, ::-1]


def _duplicated(images: np.ndarray) -> np.ndarray:
    """Ten of them, as often as it takes."""
    return np.concatenate([images[:10]] * -(-len(images) // 10))[: len(images)]


def _gridded(images: np.ndarray) -> np.ndarray:
    """Every other pixel of every other row 4 grey levels brighter."""
    grid = np.zeros((*images.shape[1:3], 1), np.int32)
    grid[::2, ::2] = 4
    return (images + grid).clip(0, 255).astype(np.uint8)


def altered_copies(images: np.ndarray, seed: int) -> np.ndarray:
    """Each turned or mirrored, cropped by 5 %, its brightness, colour and contrast changed by 5 %, as a JPEG."""
    random = np.random.default_rng(seed)
    size = images.shape[1]
    cut, copies = max(1, round(0.05 * size)), []
    for image in images:
        pixels = np.ascontiguousarray(turned(image, int(random.integers(8))))
        left, top = (int(corner) for corner in random.integers(0, cut + 1, 2))
        box = (left, top, left + size - cut, top + size - cut)
        copy = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box)
        for change in (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast):
            copy = change(copy).enhance(1 + random.choice([-0.05, 0.05]))
        file = io.BytesIO()
        copy.save(file, "JPEG", quality=75)
        copies.append(np.asarray(Image.open(file)))
    return np.stack(copies)


PAIRED = {"noise, 5 %": _noisy, "blur, 5 x 5 px": _blurred, "dark, x 0.7": _dark, "mirrored": _mirrored}
SETS = {"reals": lambda images: images, **PAIRED, "ten, repeated": _duplicated, "grid, 4 grey levels": _gridded}


def paired_table(images: np.ndarray, number: int) -> list[str]:
    """Mean scores of the first `number` images against themselves, degraded, and against the image before each."""
    another = np.roll(images, 1, 0)[:number]
    images = images[:number]
    kinds = {"itself": images, **{name: degrade(images) for name, degrade in PAIRED.items()}, "another lesion": another}
    names = [name for name, metric in METRICS.items() if images.shape[1] >= metric.min_size]
    lines = ["| against | " + " | ".join(METRICS[name].title for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for kind, others in kinds.items():
        scores = [np.mean(METRICS[name].function(uint8_to_unit(images), uint8_to_unit(others))) for name in names]
        lines.append(f"| {kind} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")
    return lines


def sets_table(images: np.ndarray) -> list[str]:
    """Figures of evaluate.py, of a third of the images as it is and degraded; the others are train and held out."""
    order = np.random.default_rng(0).permutation(len(images))
    fakes, train, reals = (images[np.sort(part)] for part in np.array_split(order, 3))
    results: dict[str, Report] = {
        name: evaluate(ImageSet(name, degrade(fakes)), ImageSet("held out", reals), ImageSet("train", train))
        for name, degrade in SETS.items()
    }
    lines = ["| | real reference | " + " | ".join(results) + " |", "|---" * (len(results) + 2) + "|"]
    for i, figure in enumerate(results["reals"].figures):
        of_reals = figure.reals and f"{figure.reals.value:.3g} ({figure.reals.low:.2g} to {figure.reals.high:.2g})"
        cells = [f"{result.figures[i].value.value:.3g}" for result in results.values()]
        lines.append(f"| {figure.title} | {of_reals or ''} | " + " | ".join(cells) + " |")
    return lines


def ranking(workdirs: list[str], file: Path | None = None) -> list[str]:
    """KID to the held-out images, by each kind of features: of training images, generators' fakes, and noise.

    The picture, where a file for it is given, has the first ten images of each in a row.
    """
    data = default.get_config().data.to_dict()
    nothing = {"fakes": None, "reals": None, "train": None, "num_images": None}
    chosen = {place: image_sets.choose(checkpoint=place, data=data, seed=0, **nothing) for place in workdirs}
    _, held_out, train = next(iter(chosen.values()))
    reals = np.asarray(train.images)
    sets = {"reals": reals, "reals, blurred slightly": _blurred_slightly(reals)}
    sets |= {Path(place).name: np.asarray(fakes.images) for place, (fakes, _, _) in chosen.items()}
    sets["noise"] = np.random.default_rng(0).integers(0, 256, reals.shape, np.uint8)
    through = {Path(place).name: fakes.trained_through for place, (fakes, _, _) in chosen.items()}
    kinds = [efficientnet_features("lite1"), efficientnet_features("lite0"), PYRAMID, PIXELS]
    lines = ["| KID | " + " | ".join(features.name for features in kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, images in sets.items():
        cells = []
        for features in kinds:
            if features.name == through.get(name):  # which must not judge them
                cells.append("-")
                continue
            found = kid(features.of(images), features.of(np.asarray(held_out.images)))
            cells.append(f"{found.value:.3f} ({found.low:.2g} to {found.high:.2g})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if file:
        write_png(file, image_grid(np.concatenate([images[:10] for images in sets.values()]), columns=10))
    return [*lines, "", f"{len(reals)} training images, {len(held_out.images)} held out."]


def _blurred_slightly(images: np.ndarray) -> np.ndarray:
    """By the binomial filter of 3 x 3 px."""
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return ((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4).round().astype(np.uint8)


def copies_table(images: np.ndarray) -> list[str]:
    """How many altered copies of training images are found among reals: thirds as in the other table, five times."""
    lines = [
        "| split | altered copies named | of the right image | reals named | C_T | C_T of the reals |",
        "|---" * 6 + "|",
    ]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(images))
        reals, train, heldout = (images[np.sort(part)] for part in np.array_split(order, 3))
        number = len(reals) // 10
        originals = np.random.default_rng(seed).choice(len(train), number, replace=False)
        fakes = np.concatenate([altered_copies(train[originals], seed), reals[number:]])
        search = CopySearch(train)
        found, of_heldout = search.nearest(fakes), search.nearest(heldout).distance
        named = memorized(found.distance, of_heldout)
        right = (found.index[:number] == originals) & named[:number]
        scores = [
            copying_z(x, of_heldout, seed=0, replicates=0).value for x in (found.distance, found.distance[number:])
        ]
        lines.append(
            f"| {seed} | {named[:number].sum()} of {number} | {right.sum()} | "
            f"{named[number:].sum()} of {len(fakes) - number} | {scores[0]:.1f} | {scores[1]:.1f} |"
        )
    return lines


def picture(images: np.ndarray) -> np.ndarray:
    """The first image in the order of the paired table, twice as large."""
    first = images[:1]
    kinds = np.concatenate([first, *(degrade(first) for degrade in PAIRED.values()), images[-1:]])
    return image_grid(kinds.repeat(2, 1).repeat(2, 2), columns=len(kinds))


def load_reals(folder: str, image_size: int = 64) -> np.ndarray:
    """All images of a folder, uint8 (N, H, H, 3)."""
    data = parse_data({**default.get_config().data.to_dict(), "path": folder})
    return np.asarray(load_dataset(data, image_size=image_size, channels=3)[0].images)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sensitivity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reals", help="a folder of images, or of a folder for each class")
    parser.add_argument("--generators", help="workdirs of runs with the same images held out, with commas between")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--picture", type=Path, help="where to write the picture: with --generators, of them")
    options = parser.parse_args()
    with reported():
        if options.generators:
            print("\n".join(ranking(options.generators.split(","), options.picture)))
        if not options.reals:
            return
        images = load_reals(options.reals, options.image_size)
        print("\n".join(paired_table(images, 1)), "\n")
        print("\n".join(paired_table(images, len(images))), "\n")
        if options.picture and not options.generators:
            write_png(options.picture, picture(images))
        print("\n".join(sets_table(images)), "\n")
        print("\n".join(copies_table(images)))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    _main()
