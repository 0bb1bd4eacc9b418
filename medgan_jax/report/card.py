"""The model card beside a generator, generator/README.md, in the form that Hugging Face's hub reads.

The owner fills in what no program knows, such as the licence. What this software writes stands between two marks, and
is written anew after each training and evaluation; the rest of the file is left as it is.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgan_jax import __version__
from medgan_jax.config import default_config
from medgan_jax.errors import reason_of
from medgan_jax.files import replace_file
from medgan_jax.metrics.distribution.guard import GUARD
from medgan_jax.report.record import number, read_record
from medgan_jax.workdir import Workdir

CARD = "README.md"
_BEGIN = "<!-- From here to the next such line, medgan_jax writes after each training and evaluation. -->"
_END = "<!-- To here. -->"
_HEAD = """---
library_name: medgan_jax
pipeline_tag: unconditional-image-generation
license: other
license_name: FILL-IN
tags:
- gan
- jax
- medical-imaging
- synthetic-data
---

# A generator of synthetic medical images

FILL IN: what the images show; where the training images come from, and who may use them; who made this generator.

{begin}
{end}
"""
_SHOWN = ("kid", "recall", "precision", "coverage", "memorization", "similarity")  # of evaluation.json
_HIDDEN = ("tensorboard", "report", "output_prefix", "init_from")  # the last two are paths
_DATA_SHOWN = (  # nothing of paths
    "horizontal_flip", "any_orientation", "holdout_fraction", "folds", "fold", "fit", "window", "frames",
)  # fmt: skip


def write_card(files: Workdir) -> None:
    """Writes the cards of a workdir's generator and of its best one, or what of them is ours.

    Where that fails, it is logged.
    """
    for folder in (files.generator, files.best):
        if folder.is_dir():
            _write(files, folder)


def _write(files: Workdir, folder: Path) -> None:
    path = folder / CARD
    try:
        text = path.read_text() if path.exists() else _HEAD.format(begin=_BEGIN, end=_END)
        before, begin, rest = text.partition(_BEGIN)
        _, end, after = rest.partition(_END)
        if begin and end:  # else the owner has written a card of their own
            replace_file(path, f"{before}{begin}\n{_written(files, folder)}\n{end}{after}".encode())
    except (OSError, ValueError) as error:  # hours of training must not end for want of a page
        reason = reason_of(error) if isinstance(error, OSError) else error
        logging.getLogger(__name__).warning("%s: could not be written (%s)", path, reason)


def _written(files: Workdir, folder: Path) -> str:
    record = read_record(files)
    step, evaluation = record.step, record.evaluation
    if folder == files.best:  # of an earlier step, and never what evaluation.json is of
        step, evaluation = max(int(saved.name) for saved in folder.iterdir() if saved.name.isdigit()), {}
    images = int(number(record.dataset, "num_images") or 0)
    counts = record.dataset.get("labels") or {}
    classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    size, channels = (number(record.config, name) for name in ("image_size", "channels"))
    colours = "grey" if channels == 1 else "colour"
    parts = [
        "## Use",
        "```\nmedgan sample --checkpoint=generator --num_images=64 --out=synthetic\n```",
        f"Copies of training images are drawn again where the training's {GUARD} was put into this folder. Whoever has "
        "that file can tell whether a photograph was trained on, and draw a blurred picture of each training image.",
        "Every image file says that it is synthetic; `medgan verify synthetic --checkpoint=generator` checks it.",
        "## Training images",
        f"{images} images{f' ({classes})' if classes else ''}, {size:g} x {size:g} px, {colours}; "
        f"digest {record.dataset.get('digest', 'not known')}.",
        "## Training",
        f"{step} steps of {record.config.get('batch_size')} images, medgan_jax {__version__}. What differs from "
        "the defaults:",
        _table(("field", "value"), _changes(record.config)),
        "## How good the images are",
        *_figures(evaluation),
        "## Limits",
        f"The generator has seen {images} images, and knows no others: rare appearances are missing, and groups of "
        "patients that are missing there are missing here. Its images are for training and testing software, not for "
        "diagnosis. Whether they help a classifier is for `medgan prove` to say, on your data. An image may resemble a "
        "training image: look at the closest pairs that `medgan evaluate` shows before you share any.",
    ]
    return "\n\n".join(["", *parts, ""])


def _changes(config: dict[str, Any]) -> list[tuple[str, str]]:
    default = default_config().to_dict()
    found = {
        name: value
        for name, value in config.items()
        if name in default and name not in _HIDDEN and "_every_" not in name
    }
    changes = [(name, str(value)) for name, value in found.items() if name != "data" and value != default[name]]
    data, of_data = found.get("data", {}), default["data"]
    of_run = {name: data.get(name, of_data[name]) for name in _DATA_SHOWN}
    return changes + [(f"data.{name}", str(value)) for name, value in of_run.items() if value != of_data[name]]


def _figures(evaluation: dict[str, Any]) -> list[str]:
    figures, protocol = evaluation.get("figures"), evaluation.get("protocol")
    if not isinstance(figures, dict) or not isinstance(protocol, dict):
        return ["Not evaluated yet: `medgan evaluate --checkpoint=WORKDIR` writes it here."]
    rows = []
    for name in _SHOWN:
        figure = figures.get(name, {})
        if number(figure, "value") is not None:
            rows.append((figure["title"], _with_interval(figure), _with_interval(figure.get("reals") or {})))
    sets = [str(protocol.get(name, "")).split(" of ")[0] for name in ("fakes", "reference")]
    step = str(protocol.get("fakes", "")).partition(" at ")[2]
    return [
        f"{sets[0]} fakes{f' of {step}' if step else ''}, compared with {sets[1]} real images that the generator has "
        "not seen; beside each figure that of as many real images. 95 % intervals.",
        _table(("figure", "fakes", "reals"), rows),
        f"Features: {protocol.get('features', 'not known')}."
        + (f" The training saw its images through {through}." if (through := protocol.get("trained_through")) else ""),
    ]


def _with_interval(figure: dict[str, Any]) -> str:
    value, low, high = (number(figure, name) for name in ("value", "low", "high"))
    if value is None:
        return ""
    return f"{value:.3g}" + (f" ({low:.3g} to {high:.3g})" if low is not None and high is not None else "")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
