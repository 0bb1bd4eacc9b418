"""The tables of `benchmarks.small_data` and its pictures, made of the scores in its folder."""

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medgan_jax.files import replace_file
from medgan_jax.models.efficientnet_lite import VARIANTS
from medgan_jax.workdir import write_json

TABLE, RESULTS = "small_data.md", "results.json"
BUDGETS = ("images", "minutes")  # in the order in which a training reaches them
SHOWN = 12  # images in a row of the pictures
REALS_ROW = "*real reference*"
_COLUMNS = {  # by title: the figures, their factor, how they are written, their unit
    "KID": ("kid", 1000, "z.0f", ""),
    "KID by pyramid": ("kid_pyramid", 1000, "z.0f", ""),
    "recall": ("recall", 1, ".2f", ""),
    "precision": ("precision", 1, ".2f", ""),
    "coverage": ("coverage", 1, ".2f", ""),
    "SWD": ("swd", 1, ".0f", ""),
    "checkerboard 2/4/8": ("checkerboard_2 checkerboard_4 checkerboard_8", 1, ".1f", ""),
    "memorization": ("memorization", 100, ".0f", " %"),
}


def write(out: Path, records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Writes TABLE, RESULTS and a picture for each size and budget.

    Args:
      out: the folder of the comparison.
      records: what is known of each generator, in the order of the tables; see `small_data`.
      about: "data", "class_filter", "images" and "minutes".
    """
    replace_file(out / TABLE, table(records, about).encode())
    write_json(out / RESULTS, {**about, "generators": list(records)})
    for part in _parts(records):
        rows = {"held-out reals": reals_strip(out, part[0])}
        for record in part:
            if record["figures"]:  # of the first seed that came to its end
                rows.setdefault(record["recipe"], strip(out, record))
        if len(rows) > 1:
            replace_file(out / f"grid_{part[0]['size']}_{part[0]['budget']}.webp", _picture(rows))


def strip(out: Path, record: Mapping[str, Any]) -> Path:
    """The file with a row of the generator's images."""
    return out / record["recipe"] / f"seed_{record['seed']}" / f"shown_{record['steps']}.png"


def reals_strip(out: Path, record: Mapping[str, Any]) -> Path:
    """The file with a row of held-out images of the generator's size."""
    return out / f"reals_{record['size']}.png"


def table(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """All tables as Markdown, one for each size and budget, each with its caption."""
    lines = [
        f"# Small data: recipes on {about['data']}, scarce class {about['class_filter']}",
        "",
        "Every generator is evaluated with the images that its training held out. There are as many fakes as training "
        "images. The real reference is what those training images get. KID x1000, recall, precision and coverage by "
        f"EfficientNet-Lite1 ({VARIANTS['lite1'].file}; not comparable with published ones), and KID x1000 by pyramid "
        "features (colour, layout, texture). SWD: sliced Wasserstein distance x1000, the mean over scales. "
        "Checkerboard: index by its period in px; 1 without a checkerboard. Memorization: share of the fakes closer to "
        "a training image than any held-out real is. Minutes of training by the rates of its log, without compiling.",
    ]
    for part in _parts(records):
        equal = f"{about['images']:,} images seen" if part[0]["budget"] == "images" else f"{about['minutes']:g} minutes"
        lines += ["", f"## {part[0]['size']} px, at equal {part[0]['budget']}: {equal}", "", *_part(part)]
    return "\n".join(lines) + "\n"


def _parts(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups = itertools.groupby(records, key=lambda record: (record["size"], record["budget"]))
    return [list(group) for _, group in groups]


def _part(part: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = ["recipe", "steps", *_COLUMNS, "minutes"]
    lines = [_caption(part), "", _row(columns), "|---" * len(columns) + "|"]
    scored = [record for record in part if record["figures"]]
    if scored:
        of_reals = figures(scored[0], of="reals") | {"memorization": math.nan}  # which belongs to those fakes
        lines.append(_row([REALS_ROW, "", *_cells([of_reals]), ""]))
    for name in dict.fromkeys(record["recipe"] for record in part):
        runs = [record for record in scored if record["recipe"] == name]
        steps = _spread([run["steps"] for run in runs], ",.0f")
        minutes = _spread([run["seconds"] / 60 for run in runs], ".1f")
        lines.append(_row([name, steps, *_cells([figures(run) for run in runs]), minutes]))
    problems = [f"- {r['recipe']}: seed {r['seed']} {r['problem']}" for r in part if r["problem"]]
    return lines + ["", *problems] if problems else lines


def _caption(part: Sequence[Mapping[str, Any]]) -> str:
    def all_of(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    sets = all_of(f"{r['protocol']['reference']}, {r['protocol']['fakes']}" for r in part if r["figures"])
    seeds = len({record["seed"] for record in part})
    spread = f"{seeds} seeds: means (lowest to highest)" if seeds > 1 else "one seed"
    versions = all_of(f"{name} {version}" for record in part for name, version in record["versions"].items())
    changed = all_of(f"{r['recipe']} is {r['sentence']}" for r in part if r["recipe"] != r["sentence"])
    return "; ".join(filter(None, [changed, f"batches of {all_of(r['batch_size'] for r in part)}", sets, spread])) + (
        f". On {all_of(r['device'] for r in part)}, commit {all_of(r['commit'] for r in part)}; {versions}."
    )


def figures(record: Mapping[str, Any], *, of: str = "") -> dict[str, float]:
    """The figures of a generator by name, and "swd", the mean over scales; nan where there is none.

    Args:
      record: of one generator.
      of: "reals" for those of the real reference instead.
    """
    values = {}
    for name, figure in record["figures"].items():
        value = ((figure[of] or {}) if of else figure).get("value")
        values[name] = math.nan if value is None else value
    scales = [value for name, value in values.items() if name.startswith("swd_")]
    return values | {"swd": float(np.mean(scales)) if scales else math.nan}


def _cells(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """What the seeds of one recipe have in each column."""
    cells = []
    for names, factor, form, unit in _COLUMNS.values():
        values = [[factor * run.get(name, math.nan) for run in runs] for name in names.split()]
        cells.append("/".join(_spread(each, form, unit, ends=len(values) == 1) for each in values))
    return cells


def _spread(values: Sequence[float], form: str, unit: str = "", *, ends: bool = True) -> str:
    """The mean, and the lowest and the highest where they differ; not these without `ends`."""
    if not values or any(map(math.isnan, values)):
        return "-"
    lowest, highest = (format(end, form) for end in (min(values), max(values)))
    return f"{np.mean(values):{form}}{unit}" + (f" ({lowest} to {highest})" if ends and lowest != highest else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _picture(rows: Mapping[str, Path]) -> bytes:
    """Rows of images, each with its name at the left, as WebP."""
    font = ImageFont.load_default(size=14)
    strips = {}
    for name, path in rows.items():
        with Image.open(path) as image:
            strips[name] = image.convert("RGB")
    left = 16 + math.ceil(max(font.getlength(name) for name in rows))
    width = left + max(row.width for row in strips.values())
    canvas = Image.new("RGB", (width, sum(row.height for row in strips.values())), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for name, row in strips.items():
        canvas.paste(row, (left, top))
        draw.text((left - 8, top + row.height / 2), name, fill="black", font=font, anchor="rm")
        top += row.height
    file = io.BytesIO()
    canvas.save(file, format="webp", quality=90, method=6)
    return file.getvalue()
