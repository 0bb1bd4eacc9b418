"""What the guard catches and reveals, and whether the audit finds what is there: the figures of docs/privacy.md.

python -m benchmarks.privacy guard --images=isic2016/images --labels=isic2016/labels.csv
python -m benchmarks.privacy audit --workdir=runs/ten

guard: of five folds of the malignant images, how many altered copies of training images are rejected, and how many
other reals, beside the search that has the images. And how like their originals the pictures are that can be drawn from
the hashes: by projecting them back, and by an attacker who learns from the benign images what lesions look like.
audit: trains on ten phantoms until the generator copies them; attacks with these, and with phantoms never seen.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sensitivity import altered_copies
from configs import default
from medgan_jax.auditing import Attack, attack, audit, discriminator_scores
from medgan_jax.checkpoint import load_discriminator, load_generator
from medgan_jax.config import parse_config, parse_data
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import reported
from medgan_jax.evaluation.image_sets import sampled
from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.features import resized
from medgan_jax.metrics.distribution.guard import Guard, random_signs
from medgan_jax.metrics.distribution.memorization import CopySearch, crops, memorized, nearest, normalized
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.trainer import train

_FOLDS, _RIDGE = 5, 100.0
_TEN = {
    "arch": "sngan", "image_size": 16, "latent_dim": 4, "gen_features": 32, "dis_features": 16, "batch_size": 10,
    "lr_gen": 1e-3, "num_steps": 3000, "log_every_steps": 500, "checkpoint_every_steps": 500,
    "monitor_every_steps": 0, "guard": False, "report": False, "tensorboard": False,
}  # fmt: skip
_NUM_FAKES, _UNSEEN = 500, 100


def guard_table(images: str, labels: str, size: int) -> list[str]:
    """A line for each fold, and what the hashes of the last one reveal."""
    c = default.get_config()
    c.data.update(source="csv", path=images, labels_csv=labels)
    malignant = parse_data({**c.data.to_dict(), "class_filter": "malignant", "folds": _FOLDS})
    lines = ["| fold | copies: search | guard | reals: search | guard |", "|---" * 5 + "|"]
    for fold in range(1, _FOLDS + 1):
        cached, held_out = load_dataset(dataclasses.replace(malignant, fold=fold), image_size=size, channels=3)
        assert held_out is not None
        training, groups = np.asarray(cached.images), np.arange(len(cached.images))
        copies, search = altered_copies(training, fold), CopySearch(training)
        guard = Guard.calibrated(training, groups, np.asarray(held_out.images), key=fold)
        limits = search.nearest(np.asarray(held_out.images)).distance, guard.arrays["unseen"]
        cells = [
            f"{memorized(which.nearest(fakes, own).distance, limit).mean():.3f}"
            for fakes, own in ((copies, None), (training, (groups, groups)))
            for which, limit in zip((search, guard), limits, strict=True)
        ]
        lines.append(f"| {fold} | {' | '.join(cells)} |")
    benign = parse_data({**c.data.to_dict(), "class_filter": "benign"})
    public = np.asarray(load_dataset(benign, image_size=size, channels=3)[0].images)
    return [*lines, "", *reconstructions(guard, training, public)]


def reconstructions(guard: Guard, training: np.ndarray, public: np.ndarray) -> list[str]:
    """The correlation of training images with what is drawn from their hashes, at 32 px."""
    bits = 8 * guard.arrays["pixels"].shape[-1]
    unpacked = np.unpackbits(guard.arrays["pixels"], axis=-1) * 2.0 - 1
    random = random_signs(guard.key, 1, normalized(crops(jnp.asarray(public[:1]))).size // unpacked.shape[1], bits)

    def products(images: jax.Array) -> jax.Array:
        return normalized(crops(images)).reshape(len(images), unpacked.shape[1], -1) @ random

    def thumbnails(images: np.ndarray) -> np.ndarray:
        return np.asarray(normalized(resized(jnp.asarray(images), 32))).reshape(len(images), -1)

    _, backwards = jax.vjp(products, jnp.asarray(public.mean(0, keepdims=True), jnp.float32))
    projected = np.concatenate([backwards(jnp.asarray(one[None], jnp.float32))[0] for one in unpacked])
    known = np.concatenate([np.sign(products(jnp.asarray(public[i : i + 16]))) for i in range(0, len(public), 16)])
    known, ours = known.reshape(len(public), -1), unpacked.reshape(len(training), -1)
    pixels = thumbnails(np.asarray(uint8_to_unit(public)))
    mean = pixels.mean(0)
    weights = np.linalg.solve(known @ known.T + _RIDGE * np.eye(len(known)) * len(known[0]) / 1e3, pixels - mean)
    learned = ours @ known.T @ weights + mean
    originals = thumbnails(np.asarray(uint8_to_unit(training)))
    drawn = {
        "projected back": thumbnails(projected),
        "learned from others": learned,
        "the mean of others": np.tile(mean, (len(originals), 1)),
    }
    found = {
        name: np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x, originals, strict=True)])
        for name, x in drawn.items()
    }
    return [f"{name}: correlation {x.mean():.2f}, {x.min():.2f} to {x.max():.2f}" for name, x in found.items()]


def audit_lines(workdir: Path) -> list[str]:
    """The audit of a generator that copies its ten images, and the same attacks with phantoms never seen."""
    c = default.get_config()
    c.update(_TEN)
    c.data.update(source="phantom", num_phantoms=50, holdout_fraction=0.8)
    config = parse_config(c)
    train(config, workdir)
    found = audit(workdir, c.data.to_dict(), num_fakes=_NUM_FAKES)
    _, held_out = load_dataset(config.data, image_size=config.image_size, channels=3)
    assert held_out is not None
    never = np.stack([phantom_image(i, seed=1, image_size=config.image_size) for i in range(_UNSEEN)])
    sides, mesh = (never, np.asarray(held_out.images)), data_mesh()
    generator = load_generator(workdir, replicated(mesh))
    fakes = sampled(generator, _NUM_FAKES, seed=0, mesh=mesh, title="").images
    discriminator = load_discriminator(workdir, replicated(mesh))
    groups = [np.arange(len(side)) for side in sides]
    nearness = [-nearest(side, fakes)[1] for side in sides]
    logits = [discriminator_scores(discriminator, side, None) for side in sides]
    unseen = [attack(scores[0], scores[1], groups[0], groups[1], seed=0) for scores in (nearness, logits)]
    assert found.discriminator is not None
    return [
        _line("ten, generator", found.generator),
        _line("ten, discriminator", found.discriminator),
        _line("never seen, generator", unseen[0]),
        _line("never seen, discriminator", unseen[1]),
    ]


def _line(what: str, found: Attack) -> str:
    a = found.advantage
    return f"| {what} | {a.value:.2f} ({a.low:.2f} to {a.high:.2f}) | {found.verdict} |"


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.privacy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    guard = commands.add_parser("guard")
    guard.add_argument("--images", required=True)
    guard.add_argument("--labels", required=True)
    guard.add_argument("--image_size", type=int, default=64)
    commands.add_parser("audit").add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    with reported():
        if options.command == "guard":
            print("\n".join(guard_table(options.images, options.labels, options.image_size)))
        else:
            print("\n".join(audit_lines(options.workdir)))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    _main()
