"""The folder of a balanced set: real and generated images, and labels.csv with the origin of each.

The same call writes the same bytes. It may be stopped at any moment: draws.csv has each image that was drawn, kept or
replaced, and the same call goes on after the last of them.
"""

import contextlib
import csv
import fcntl
import functools
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jax.sharding import Mesh

from medgan_jax.balancing.counts import Counts
from medgan_jax.balancing.draw import BATCH, COPY, KEPT, OTHER_CLASS, Draw, distances_of_reals, draw, train_classifier
from medgan_jax.balancing.sources import Drawer, Reals
from medgan_jax.data.sources import FileSource
from medgan_jax.errors import UserError, naming
from medgan_jax.files import replace_file, replacing
from medgan_jax.images import write_png
from medgan_jax.metrics.distribution.memorization import CopySearch
from medgan_jax.progress import progress_bar
from medgan_jax.provenance import Provenance, png_text
from medgan_jax.workdir import read_json, write_json

SETTINGS, DRAWS, LABELS = "balance.json", "draws.csv", "labels.csv"
LINK, COPIED, LISTED = "link", "copy", "list"  # what is done with reals
FAKES = "synthetic"  # the folder of them
COLUMNS = ("image", "label", "source", "group", "generator", "seed", "index", "nearest", "distance")
_LOCK, _UNFINISHED = ".lock", ".*.tmp"
_MOST_DRAWS, _LEAST_LIMIT = 10, 64  # for each image that is wanted, or in all if that is more: then it is given up


def write_set(
    out: Path,
    drawers: Mapping[str, Drawer],
    reals: Reals,
    counts: Mapping[str, Counts],
    *,
    seed: int,
    placing: str,
    agree: bool,
    mesh: Mesh,
    say: Callable[[str], None],
) -> dict[str, list[Draw]]:
    """Writes a set, or what is missing of it.

    Args:
      out: the folder; made when missing.
      drawers: by class, at least of those that are to get fakes.
      reals: to choose from.
      counts: how many of each class.
      seed: decides latents, and which reals are chosen.
      placing: of reals: `LINK`, `COPIED` or `LISTED`. Those that are not `as_files` are written instead of linked or
        copied, as PNG files of the generators' size.
      agree: whether to replace images that a classifier of the reals takes for another class.
      mesh: the devices.
      say: prints a line.

    Returns:
      All images that were drawn, by class.

    Raises:
      UserError: nothing draws a class; frames of a file are to be listed; the folder holds something else, or lies
        among the reals; or a generator draws too few images that are neither copies nor of another class.
    """
    for label, count in counts.items():
        if count.fakes and label not in drawers:
            raise UserError(
                f"--checkpoint: {count.fakes} fakes of {label} are asked for, and none draws it; give another for "
                f"{label}, or another --target or --synthetic_of"
            )
    if isinstance(reals.source, FileSource) and not reals.as_files:
        if placing != LISTED:
            say(
                f"reals: as PNG files of {reals.images.shape[1]} px, with the values that were trained on; their own "
                "files would be read otherwise (DICOM, several frames, 16 bits, data.window or data.fit)"
            )
        elif reals.source.numbers:
            raise UserError(
                "--reals=list: with data.frames=all a file is several images, which a list cannot tell apart; leave "
                "it out"
            )
    settings = {
        "counts": {label: list(count) for label, count in counts.items()},
        "generators": {label: drawers[label].generator.digest for label, count in counts.items() if count.fakes},
        "images": reals.digest, "reals": placing, "agree": agree, "seed": seed,
    }  # fmt: skip
    with _opened(out, reals, settings):
        rows = _place_reals(out, reals, _choose_reals(reals, counts, seed), placing)
        found = _read_draws(out, counts)
        missing = [label for label, count in counts.items() if _number(found[label], KEPT) < count.fakes]
        classify = None
        if agree and missing:
            classify, score = train_classifier(reals)
            say(f"--agree: the classifier's balanced accuracy on real images is {score:.2f}, by cross-validation")
        searches: dict[str, CopySearch] = {}  # those of generators that have seen the same images are one
        for label in missing:
            drawer, number, draws = drawers[label], counts[label].fakes, found[label]
            seen = drawer.training
            if seen.digest not in searches:
                say(f"{drawer.path}: looking at {len(seen.images)} training images, to find copies of them")
                searches[seen.digest] = CopySearch(seen.images)
            search = searches[seen.digest]
            of_reals, which = distances_of_reals(drawer, search)
            say(f"{label}: fakes are replaced that are nearer to a training image than {which}")
            limit = max(_LEAST_LIMIT, _MOST_DRAWS * number)
            options: dict[str, Any] = {"seed": seed, "mesh": mesh, "classify": classify}
            batches = draw(drawer, label, search, of_reals, first=len(draws), last=limit, **options)
            class_ = label if drawer.generator.classes else ""
            provenance = functools.partial(drawer.generator.provenance, seed=seed, label=class_)
            _write_fakes(out, label, number, draws, batches, provenance)
            if (kept := _number(draws, KEPT)) < number:
                others = f", {_number(draws, OTHER_CLASS)} were taken for another class" if agree else ""
                raise UserError(
                    f"{drawer.path}: of {len(draws)} images of {label} that it drew, {_number(draws, COPY)} were too "
                    f"near to a training image{others}, and {kept} of {number} are there; ask for fewer, or give a "
                    "generator that was trained less long or on more images"
                )
        for label, draws in found.items():
            for one in draws:
                if one.outcome == KEPT:
                    name = _fake_name(label, one.number)
                    origin = drawers[label].generator.digest, seed, one.number, one.nearest, one.distance
                    rows.append((name, label, "synthetic", name, *origin))
        replace_file(out / LABELS, _as_csv([COLUMNS, *rows]))
    return found


@contextlib.contextmanager
def _opened(out: Path, reals: Reals, settings: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder, or checks that it is of the same call; and holds its lock."""
    if isinstance(reals.source, FileSource) and out.resolve().is_relative_to(Path(reals.source.root).resolve()):
        raise UserError(f"--out={out}: lies within {reals.source.root}, whose images it would join; give another")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    if (out / SETTINGS).exists():
        before = read_json(out / SETTINGS, remedy="give another --out")
        changes = [f"{name}: {before.get(name)} -> {new}" for name, new in settings.items() if before.get(name) != new]
        if changes:
            raise UserError(
                f"--out={out}: holds a set that differs in {'; '.join(changes)}. Undo the change to complete it, or "
                "give another folder"
            )
    elif foreign := [path.name for path in out.iterdir() if path.name != _LOCK and not path.match(_UNFINISHED)]:
        raise UserError(f"--out={out}: holds {len(foreign)} files already, such as {foreign[0]}; give another folder")
    with open(out / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out={out}: the same command is running; wait for it") from None
        for path in out.rglob(_UNFINISHED):  # of a call that was killed
            path.unlink()
        write_json(out / SETTINGS, settings)
        yield


def _choose_reals(reals: Reals, counts: Mapping[str, Counts], seed: int) -> list[int]:
    """The indices of the reals of the set, in order; of a class that leaves some out, drawn by chance."""
    chosen: list[int] = []
    for number, (label, count) in enumerate(counts.items()):
        of_class = np.flatnonzero(reals.labels == label)
        chosen.extend(np.random.default_rng([seed, number]).permutation(of_class)[: count.reals].tolist())
    return sorted(chosen)


def _place_reals(out: Path, reals: Reals, chosen: Sequence[int], placing: str) -> list[tuple[Any, ...]]:
    """Links, copies, writes or only names reals; their rows of labels.csv."""
    source, labels, rows = reals.source, reals.labels, []
    with progress_bar(len(chosen), desc="reals", unit="image") as bar:
        for index in chosen:
            original = os.path.abspath(source.path(index)) if isinstance(source, FileSource) else source.names[index]
            if placing == LISTED:
                name = original
            else:
                name = _real_name(reals, index)
                if not os.path.lexists(out / name):
                    (out / name).parent.mkdir(exist_ok=True)
                    if not reals.as_files:
                        write_png(out / name, reals.images[index])
                    elif placing == LINK:
                        os.symlink(original, out / name)
                    else:
                        with replacing(out / name) as temporary:
                            shutil.copyfile(original, temporary)
            group = source.groups[index] if source.groups else source.names[index]
            rows.append((name, labels[index], "real", group, "", "", "", "", ""))
            bar.update()
    return rows


def _write_fakes(
    out: Path,
    label: str,
    number: int,
    found: list[Draw],
    batches: Iterable[tuple[list[Draw], np.ndarray]],
    provenance: Callable[..., Provenance],
) -> None:
    """Writes images of a class until `number` are kept, and adds to draws.csv and to `found` what was drawn.

    `provenance` is of the image of an `index`.
    """
    kept = _number(found, KEPT)
    (out / FAKES).mkdir(exist_ok=True)
    with (
        naming(out / DRAWS),
        open(out / DRAWS, "ab") as file,
        progress_bar(number, desc=f"drawing {label}", unit="image", initial=kept) as bar,
    ):
        for draws, images in batches:
            drawn = []
            for one, image in zip(draws, images, strict=True):
                drawn.append(one)
                if one.outcome == KEPT:
                    text = png_text(provenance(index=one.number))
                    write_png(out / _fake_name(label, one.number), image, text)
                    kept += 1
                    bar.update()
                    if kept == number:
                        break
            file.write(_as_csv([(label, *one) for one in drawn]))
            file.flush()
            os.fsync(file.fileno())
            found.extend(drawn)
            if kept == number:
                return


def _read_draws(out: Path, counts: Mapping[str, Counts]) -> dict[str, list[Draw]]:
    """What an earlier call drew, by class, as far as it goes without a gap; and cuts draws.csv to that."""
    path = out / DRAWS
    text = path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # a crash may have cut the last line short
    earlier: dict[str, list[Draw]] = {label: [] for label in counts}
    for label, index, outcome, nearest, distance in itertools.islice(
        csv.reader(io.StringIO(whole, newline="")), 1, None
    ):
        earlier[label].append(Draw(int(index), outcome, nearest, distance))
    found: dict[str, list[Draw]] = {label: [] for label in counts}
    for label, count in counts.items():
        is_there = (d.outcome != KEPT or (out / _fake_name(label, d.number)).exists() for d in earlier[label])
        draws = [d for d, there in zip(earlier[label], itertools.accumulate(is_there, min), strict=True) if there]
        if _number(draws, KEPT) < count.fakes:
            found[label] = draws[: len(draws) // BATCH * BATCH]
            break  # what follows is drawn anew, to stand in the same order
        found[label] = draws
    lines = [(label, *d) for label, draws in found.items() for d in draws]
    replace_file(path, _as_csv([("label", "index", "outcome", "nearest", "distance"), *lines]))
    return found


def _real_name(reals: Reals, index: int) -> str:
    """Below the folder, and in no other folder: one called "train" would be a split, to which no fake belongs."""
    source = reals.source
    name = source.names[index].replace("%", "%25").replace("/", "%2F")
    if isinstance(source, FileSource) and source.numbers:
        name += f"[{source.numbers[index]}]"
    return f"reals/{name}" if reals.as_files else f"reals/{name}.png"


def _fake_name(label: str, index: int) -> str:
    """Below the folder; a label may hold any character."""
    return f"{FAKES}/synthetic_{quote(label, safe='', errors='surrogateescape')}_{index:06d}.png"


def _number(draws: Sequence[Draw], outcome: str) -> int:
    return sum(one.outcome == outcome for one in draws)


def _as_csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
