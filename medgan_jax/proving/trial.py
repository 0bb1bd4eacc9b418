"""A trial: in each fold, generators and classifiers are trained on the other folds alone, and judged by this one.

What is done is kept in the folder of the trial, so that a trial that was stopped goes on:

  trial.json              what is tried; another trial is refused
  fold_K/gan...           the runs of the generators, each a workdir of `train.py`
  fold_K/generators.json  their digests
  fold_K/scores/          of each arm and seed, the probabilities of the held-out images
  fold_K/attention.npz    what two classifiers look at, of the first fold
  verdict.json            figures and verdict
  prove.html              the same as a page
"""

import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgan_jax import __version__
from medgan_jax.checkpoint import TrainedGenerator, load_generator
from medgan_jax.config import Config
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.cache import CachedImages
from medgan_jax.errors import UserError, abbreviate, reason_of
from medgan_jax.evaluation.image_sets import sampled
from medgan_jax.files import replace_file
from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.progress import progress_bar
from medgan_jax.proving import page
from medgan_jax.proving.arms import RATIOS, Arm, all_arms, plan
from medgan_jax.proving.classifier import CLASSIFIERS, Classifier
from medgan_jax.proving.figures import Fold, Verdict, judge
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.trainer import train
from medgan_jax.workdir import read_json, write_json

MIN_IMAGES = 20  # of each class
VERDICT = "verdict.json"
_SHOWN = 6  # images of each kind, for what classifiers look at


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a trial tries, besides the config of its generators.

    Attributes:
      folds: how many, 2 or more.
      classifier: one of `CLASSIFIERS`.
      seeds: of classifiers, for each arm of each fold.
      steps: of each classifier's training, of 32 images.
      ratios: fakes for each real, one arm each.
    """

    folds: int = 5
    classifier: str = "finetuned"
    seeds: int = 5
    steps: int = 300
    ratios: tuple[float, ...] = RATIOS


def prove(
    config: Config,
    out: Path,
    settings: Settings,
    *,
    generators: Path | None = None,
    command: str = "",
    progress: bool = True,
) -> tuple[int, Verdict | None]:
    """Runs a trial, or goes on with it.

    Args:
      config: of the generators. With `conditional`, one learns all classes; else each class has one of its own.
      out: the folder of the trial; made when missing.
      settings: what is tried.
      generators: a folder like `out`, whose generators are taken in place of training some.
      command: what started it, for the reports of the runs.
      progress: whether to show progress bars on stderr.

    Returns:
      The exit code of a training that was stopped, as `trainer.train` has it, and no verdict; or 0 and the verdict.

    Raises:
      UserError: there are fewer than two classes, or too few images of one; the folder holds another trial; or a
        generator was not trained on exactly the images that its fold leaves.
    """
    _check(config)
    folds = [_divided(config, settings.folds, fold) for fold in range(1, settings.folds + 1)]
    names, counts = _classes(config, folds[0])
    _record(config, out, settings, folds)
    arms = all_arms(settings.ratios)
    classifier = CLASSIFIERS[settings.classifier]
    found = []
    for number, (training, held_out) in enumerate(folds, 1):
        place = out / f"fold_{number}"
        missing = [
            (arm, seed) for arm in arms for seed in range(settings.seeds) if not _path(place, arm, seed).exists()
        ]
        if missing or (number == 1 and not (place / "attention.npz").exists()):
            print(f"fold {number} of {settings.folds}: {len(training.images)} images to train on, "
                  f"{len(held_out.images)} held out", flush=True)  # fmt: skip
            makers = _generator_configs(config, settings.folds, number, names)
            for name, of_class in makers.items():
                if generators is None and (code := train(of_class, place / name, command=command)):
                    return code, None
            where = (generators or out) / f"fold_{number}"
            trained = {run: load_generator(where / run, replicated(data_mesh())) for run in makers}
            _check_trained(trained, makers, where, place / "generators.json")
            fakes = _fakes(trained, names, _label_numbers(training, names), max(settings.ratios), progress)
            _score(place, classifier, settings, arms, names, training, held_out, fakes, missing, progress)
        found.append(_fold(place, arms, settings.seeds, names, held_out))
    scarcest = int(np.argmin(counts))
    verdict = judge(found, arms, positive=scarcest)
    details = {
        "classes": dict(zip(names, map(int, counts), strict=True)),
        "positive": names[scarcest],
        **dataclasses.asdict(settings),
        "classifier": classifier.description,
        "generators": "one of all classes" if config.conditional else "one for each class",
        "image_size": config.image_size,
    }
    replace_file(out / VERDICT, (json.dumps(_as_json(verdict, details), indent=1) + "\n").encode())
    page.write(out, verdict, found, details, dict(np.load(out / "fold_1/attention.npz")), positive=scarcest)
    return 0, verdict


def _check(config: Config) -> None:
    if config.data.class_filter:
        raise UserError(f"data.class_filter={config.data.class_filter!r}: a trial is about all classes; leave it out")
    if config.init_from:
        raise UserError(
            f"init_from={config.init_from!r}: what it was trained on may be held out here; leave it out, so that "
            "generators start anew in each fold"
        )
    if config.on_alarm != "warn":
        raise UserError(
            f"on_alarm={config.on_alarm!r}: alarms look at held-out images, which may decide nothing here; leave it out"
        )
    for field in ("holdout_fraction", "folds"):
        if getattr(config.data, field):
            raise UserError(f"data.{field}: a trial divides the images itself, by --folds; leave it out")


def _fold_data(config: Config, folds: int, fold: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, folds=folds, fold=fold))


def _divided(config: Config, folds: int, fold: int) -> tuple[CachedImages, CachedImages]:
    """The images to train on, and those held out."""
    data = _fold_data(config, folds, fold).data
    training, held_out = load_dataset(
        data, image_size=config.image_size, channels=config.channels, progress=fold == 1
    )  # what lies there is said once
    assert held_out is not None
    return training, held_out


def _classes(config: Config, fold: tuple[CachedImages, CachedImages]) -> tuple[tuple[str, ...], list[int]]:
    """Names and numbers of images of all classes."""
    place = config.data.path or config.data.source
    labels = [side.labels for side in fold]
    if labels[0] is None or labels[1] is None:
        raise UserError(
            f"{place}: the images have no labels, so there is nothing to classify; sort them into a folder per class, "
            "or use data.source=csv"
        )
    counts = Counter([*labels[0], *labels[1]])
    if len(counts) < 2:
        raise UserError(f"{place}: all {counts.total()} images are {min(counts)!r}; a classifier needs two classes")
    if few := [f"{name} {count}" for name, count in sorted(counts.items()) if count < MIN_IMAGES]:
        raise UserError(
            f"{place}: too few images of a class to show anything: {abbreviate(few)}; each needs {MIN_IMAGES}, so add "
            "images, or leave that class out"
        )
    names = tuple(sorted(counts))
    return names, [counts[name] for name in names]


def _record(config: Config, out: Path, settings: Settings, folds: Sequence[tuple[CachedImages, CachedImages]]) -> None:
    """Writes trial.json, or checks that it is of this trial."""
    plain = config.to_dict()
    for field in ("path", "labels_csv", "cache_dir"):
        plain["data"].pop(field)
    plain.pop("guard")
    record = {
        "settings": {**dataclasses.asdict(settings), "ratios": list(settings.ratios)},
        "config": plain,
        "images": [[side.digest for side in fold] for fold in folds],
    }
    path = out / "trial.json"
    try:
        if not path.exists():
            if out.is_dir() and any(out.iterdir()):
                raise UserError(f"--out={out}: is not empty and holds no trial; give another folder")
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
            return
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({reason_of(error)}); give another folder") from error
    before = read_json(path)
    if changed := [name for name, value in record.items() if before.get(name) != value]:
        raise UserError(
            f"--out={out}: holds a trial with other {' and '.join(changed)}; give the same command to go on with it, "
            "or another folder"
        )


def _generator_configs(config: Config, folds: int, fold: int, names: Sequence[str]) -> dict[str, Config]:
    """By the name of its run, the config of each generator of a fold."""
    of_fold = dataclasses.replace(_fold_data(config, folds, fold), guard=False)  # nobody samples from them later
    if config.conditional:
        return {"gan": of_fold}
    return {
        f"gan_{number}": dataclasses.replace(of_fold, data=dataclasses.replace(of_fold.data, class_filter=name))
        for number, name in enumerate(names)
    }


def _label_numbers(images: CachedImages, names: Sequence[str]) -> np.ndarray:
    """int, (N,): the class of each image."""
    return np.array([names.index(label) for label in images.labels or ()])


def _check_trained(trained: dict[str, TrainedGenerator], makers: dict[str, Config], where: Path, record: Path) -> None:
    """Raises UserError where a generator saw other images than its fold leaves, or is not the one in `record`."""
    for run, generator in trained.items():
        config, place = makers[run], where / run
        if generator.module.image_size != config.image_size or generator.module.channels != config.channels:
            raise UserError(f"{place}: makes images of another size than config.image_size={config.image_size}")
        training, _ = load_dataset(config.data, image_size=config.image_size, channels=config.channels, progress=False)
        saw = generator.about.get("config") or {}
        if (
            generator.about.get("data_digest") != training.digest
            or saw.get("init_from")
            or saw.get("on_alarm", "warn") != "warn"
        ):
            raise UserError(
                f"{place}: was not trained on exactly the images that data.fold={config.data.fold} of "
                f"data.folds={config.data.folds} leaves, so it may have seen held-out ones; train it with these "
                "fields, and without init_from and on_alarm"
            )
    digests = {run: generator.digest for run, generator in trained.items()}
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, digests)
    elif read_json(record) != digests:
        raise UserError(f"{where}: holds other generators than those that {record.parent} was begun with; give those")


def _fakes(
    trained: dict[str, TrainedGenerator], names: Sequence[str], labels: np.ndarray, ratio: float, progress: bool
) -> list[np.ndarray]:
    """Of each class, `ratio` fakes for each real, uint8 (N, H, W, C)."""
    numbers = [math.ceil(ratio * count) for count in np.bincount(labels, minlength=len(names))]
    found = []
    for label, (name, number) in enumerate(zip(names, numbers, strict=True)):
        options: dict[str, Any] = {"seed": 0}
        if "gan" in trained:  # of one generator, images of equal latents look alike, and would stand in two classes
            options = {"seed": label, "label": name}
        generator = trained.get("gan") or trained[f"gan_{label}"]
        found.append(sampled(generator, number, mesh=data_mesh(), title=name, progress=progress, **options).images)
    return found


def _path(place: Path, arm: Arm, seed: int) -> Path:
    return place / "scores" / f"{arm.name}_{seed}.npy"


def _score(
    place: Path,
    classifier: Classifier,
    settings: Settings,
    arms: Sequence[Arm],
    names: Sequence[str],
    training: CachedImages,
    held_out: CachedImages,
    fakes: Sequence[np.ndarray],
    missing: Sequence[tuple[Arm, int]],
    progress: bool,
) -> None:
    """Trains the classifiers that are missing, and keeps what they say of the held-out images."""
    real_labels = _label_numbers(training, names)
    images = np.concatenate([training.images, *fakes])
    labels = np.concatenate([real_labels, *(np.full(len(x), label) for label, x in enumerate(fakes))])
    synthetic = np.arange(len(labels)) >= len(real_labels)
    inputs = classifier.inputs(images, augmented=True)
    held_out_inputs = classifier.inputs(np.asarray(held_out.images), augmented=False)
    (place / "scores").mkdir(parents=True, exist_ok=True)
    looked_at = _looked_at(arms) if place.name == "fold_1" else ()
    jobs = [*missing]
    if looked_at and not (place / "attention.npz").exists():
        jobs += [(arm, 0) for arm in looked_at if (arm, 0) not in missing]
    attention: dict[str, np.ndarray] = {}
    scarcest = int(np.bincount(real_labels).argmin())
    shown = _shown(images, labels, synthetic, scarcest)
    with progress_bar(len(jobs), desc="classifiers", unit="training", disable=not progress) as bar:
        for arm, seed in jobs:
            drawn = plan(arm, labels, synthetic, len(names))
            variables = classifier.train(inputs, labels, drawn, steps=settings.steps, seed=seed)
            scores = classifier.predict(variables, held_out_inputs)
            if (arm, seed) in missing:  # else it is trained again for what it looks at
                replace_file(_path(place, arm, seed), _npy(scores))
            if seed == 0 and arm in looked_at:
                attention[arm.name] = classifier.attention(variables, shown, scarcest)
            bar.update()
    if len(attention) == len(looked_at) and attention:
        buffer = io.BytesIO()
        arrays: Any = {"images": shown} | attention
        np.savez(buffer, **arrays)
        replace_file(place / "attention.npz", buffer.getvalue())


def _looked_at(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """The arms whose classifiers are asked what they look at: augmented reals, without fakes and with."""
    with_fakes = [arm for arm in arms if arm.base == "augmented" and arm.fakes == "all"]
    return (next(arm for arm in arms if arm.name == "augmented"), with_fakes[-1])


def _shown(images: np.ndarray, labels: np.ndarray, synthetic: np.ndarray, label: int) -> np.ndarray:
    """Reals, then as many fakes, of one class."""
    reals, fakes = (images[(labels == label) & side][:_SHOWN] for side in (~synthetic, synthetic))
    number = min(len(reals), len(fakes))
    return np.concatenate([reals[:number], fakes[:number]])


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _fold(place: Path, arms: Sequence[Arm], seeds: int, names: Sequence[str], held_out: CachedImages) -> Fold:
    groups = np.unique(held_out.groups or held_out.names, return_inverse=True)[1]
    scores = {arm.name: np.stack([np.load(_path(place, arm, seed)) for seed in range(seeds)]) for arm in arms}
    return Fold(_label_numbers(held_out, names), groups, scores)


def _as_json(verdict: Verdict, details: dict[str, Any]) -> dict[str, Any]:
    def plain(estimate: Estimate | None) -> dict[str, float] | None:
        if estimate is None:
            return None
        return {name: float(f"{x:.6g}") for name, x in dataclasses.asdict(estimate).items()}

    return {
        "version": __version__,
        "verdict": verdict.word,
        "sentence": verdict.sentence,
        "reference": verdict.reference,
        "mean_difference": plain(verdict.mean_difference),
        "smallest_difference": float(f"{verdict.smallest_difference:.6g}"),
        "trial": details,
        "arms": {
            result.arm.name: {
                "is": result.arm.describe(),
                "figures": {name: plain(estimate) for name, estimate in result.figures.items()},
                "differences": {name: plain(estimate) for name, estimate in result.differences.items()},
            }
            for result in verdict.results
        },
    }
