"""The table of `benchmarks.small_data`, its pictures and its figures, made of the scores in its folder."""

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.small_data_ablation import Variant
from medgan_jax.images import replace_file
from medgan_jax.models.efficientnet_lite import VARIANTS
from medgan_jax.workdir import write_json

TABLE, RESULTS = "small_data.md", "results.json"
STRIP, REALS = "shown.png", "reals.png"  # a row of images: of a generator, of a part
SHOWN = 12  # images in it
REALS_ROW = "*real reference*"
_LABEL_WIDTH = 110  # px


def write(
    out: Path, records: Sequence[Mapping[str, Any]], about: Mapping[str, Any], variants: Mapping[str, Variant]
) -> None:
    """Writes TABLE, RESULTS and a picture for each part.

    Args:
      out: the folder of the ablation.
      records: what is known of each generator, in the order of the table; see `small_data`.
      about: "data", "class_filter" and "protocol".
      variants: by name.
    """
    replace_file(out / TABLE, table(records, about, variants).encode())
    write_json(out / RESULTS, {**about, "generators": list(records)})
    for part in _parts(records):
        rows = {"held-out reals": out / _name(part) / REALS}
        for record in part:
            if record["figures"]:  # of the first seed that came to its end
                rows.setdefault(
                    record["variant"], out / _name(part) / record["variant"] / f"seed_{record['seed']}" / STRIP
                )
        if len(rows) > 1:
            replace_file(out / f"grid_{_name(part).replace('/', '_')}.webp", _picture(rows))


def table(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any], variants: Mapping[str, Variant]) -> str:
    """All parts as Markdown, each a caption, the scores with their spread over seeds, and their intervals."""
    lines = [
        f"# Small data: the {about['protocol']} protocol on {about['data']}, scarce class {about['class_filter']}",
        "",
        "Every generator is evaluated with the images that its training held out. There are as many fakes as training "
        "images. The real reference is what those training images get. SWD: sliced Wasserstein distance x1000, the "
        "mean over scales, and each scale. Above real reference: the SWD less that of the real reference, as a "
        "multiple of the same difference of the published recipe. KID x1000, recall, density and coverage by "
        f"EfficientNet-Lite1 ({VARIANTS['lite1'].file}; not comparable with published ones); KID x1000 by pyramid "
        "features (colour, layout and texture) too. Checkerboard: index by "
        "its period in px; 1 without a checkerboard. Similarity of two fakes over that of two reals: above 1 is less "
        "diverse. Memorization: share of the fakes closer to a training image than any held-out real is; blurred "
        "images are close to everything. Inception: KID x1000 and FID, with --inception_weights. Time of a training "
        "by the rates of its log, without compiling. The generator of `best` was chosen with the images that evaluate "
        "it.",
    ]
    for part in _parts(records):
        lines += ["", f"## {part[0]['size']} px, {part[0]['set']}", "", *_part(part, variants)]
    return "\n".join(lines) + "\n"


def _parts(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [list(group) for _, group in itertools.groupby(records, key=lambda record: (record["size"], record["set"]))]


def _name(part: Sequence[Mapping[str, Any]]) -> str:
    return f"{part[0]['size']}/{part[0]['set']}"


def _part(part: Sequence[Mapping[str, Any]], variants: Mapping[str, Variant]) -> list[str]:
    first = next((record for record in part if record["figures"]), None)
    lines = [_caption(part, first)]
    by_variant = {name: [r for r in part if r["variant"] == name] for name in dict.fromkeys(r["variant"] for r in part)}
    if first is None:
        return [*lines, "", "Nothing was evaluated.", *_remarks(by_variant, variants)]
    scales, periods = (
        [name.removeprefix(prefix) for name in first["figures"] if name.startswith(prefix)]
        for prefix in ("swd_", "checkerboard_")
    )
    reals = figures(first, of="reals")
    scored = {name: [figures(r) for r in records if r["figures"]] for name, records in by_variant.items()}
    published = _mean(run["swd"] for run in scored.get("published", []))

    columns = [
        "variant", "SWD", f"at {'/'.join(scales)} px", "above real reference", "KID", "by pyramid", "recall", "density",
        "coverage",
        f"checkerboard {'/'.join(periods)}", "similarity", "memorization", "Inception KID", "FID", "time",
    ]  # fmt: skip
    lines += ["", _row(columns), "|---" * len(columns) + "|"]
    for name, runs in {REALS_ROW: [reals], **scored}.items():
        records = by_variant.get(name, [])
        above = [above_reals(run["swd"], reals["swd"], published) for run in runs]
        cells = [
            name,
            _spread([run["swd"] for run in runs], "z.0f"),
            "/".join(_number(_mean(run[f"swd_{scale}"] for run in runs), ".0f") for scale in scales),
            "0" if name == REALS_ROW else _spread(above, ".2f"),
            _spread([1000 * run["kid"] for run in runs], "z.0f"),
            _spread([1000 * run["kid_pyramid"] for run in runs], "z.0f"),
            _spread([run["recall"] for run in runs], ".2f"),
            _spread([run["density"] for run in runs], ".2f"),
            _spread([run["coverage"] for run in runs], ".2f"),
            "/".join(_number(_mean(run[f"checkerboard_{period}"] for run in runs), ".1f") for period in periods),
            _spread([run["similarity"] / reals["similarity"] for run in runs], ".2f"),
            _spread([100 * run["memorization"] for run in runs], ".0f", unit=" %"),
            _spread([1000 * run["inception_kid"] for run in runs], "z.0f"),
            _spread([run["inception_fid"] for run in runs], "z.0f"),
            _time(records),
        ]
        lines.append(_row(cells))

    names = [*(f"swd_{scale}" for scale in scales), "kid", "kid_pyramid", "recall", "density", "coverage"]
    names += [*(f"checkerboard_{period}" for period in periods), "similarity", "memorization"]
    titles = [f"SWD {scale}" for scale in scales] + ["KID", "by pyramid", "recall", "density", "coverage"]
    titles += [*(f"checkerboard {period}" for period in periods), "similarity", "memorization"]
    lines += [
        "",
        "95 % intervals by resampling the images, similarity as it is: the mean over seeds of each end.",
        "",
        _row(["variant", *titles]),
        "|---" * (1 + len(titles)) + "|",
    ]
    for name, records in {REALS_ROW: [first], **by_variant}.items():
        of = "reals" if name == REALS_ROW else ""
        ends = [[figures(r, of=of, end=end) for r in records if r["figures"]] for end in ("low", "high")]
        lines.append(_row([name, *(_interval(each, *ends) for each in names)]))
    return lines + _remarks(by_variant, variants)


def _remarks(by_variant: Mapping[str, Sequence[Mapping[str, Any]]], variants: Mapping[str, Variant]) -> list[str]:
    """What each variant is, and what happened to it."""
    lines = ["", _row(["variant", "is", "", "remarks"]), "|---|---|---|---|"]
    for name, records in by_variant.items():
        variant = variants[name]
        problems = [f"seed {record['seed']} {record['problem']}" for record in records if record["problem"]]
        seeds = f"{len(records)} seed{'s' if len(records) > 1 else ''}"
        lines.append(
            _row([name, f"{variant.base} +" if variant.base else "", variant.sentence, "; ".join([seeds, *problems])])
        )
    return lines


def _caption(part: Sequence[Mapping[str, Any]], scored: Mapping[str, Any] | None) -> str:
    def all_of(field: str) -> str:
        return ", ".join(sorted({str(record[field]) for record in part}))

    versions = sorted({f"{name} {version}" for record in part for name, version in record["versions"].items()})
    sets = f"; {scored['protocol']['reference']}, {scored['protocol']['fakes']}" if scored else ""
    spread = "means over seeds (lowest to highest)" if len({record["seed"] for record in part}) > 1 else "one seed"
    return (
        f"{all_of('maps')} feature maps, {all_of('steps')} steps of {all_of('batch_size')} images{sets}; {spread}. "
        f"Trained on {all_of('device')}, commit {all_of('commit')}; evaluated at {all_of('scored_at')}; "
        f"{', '.join(versions)}."
    )


def figures(record: Mapping[str, Any], *, of: str = "", end: str = "value") -> dict[str, float]:
    """The figures of a generator by name, and "swd", the mean over scales; nan where there is none.

    Args:
      record: of one generator.
      of: "reals" for those of the real reference instead.
      end: "value", or "low" or "high" of the interval.
    """

    def read(group: str, prefix: str) -> dict[str, float]:
        found = {name: figure[of] if of else figure for name, figure in record[group].items()}
        return {
            prefix + name: math.nan if estimate is None or estimate[end] is None else estimate[end]
            for name, estimate in found.items()
        }

    values = {"inception_kid": math.nan, "inception_fid": math.nan}
    values |= read("figures", "") | read("inception", "inception_")
    values["swd"] = _mean(value for name, value in values.items() if name.startswith("swd_"))
    return values


def above_reals(distance: float, reals: float, published: float) -> float:
    """The distance less the real reference, as a multiple of the same difference of the published recipe.

    Returns:
      nan where the published recipe is not above the real reference, or is not known.
    """
    return (distance - reals) / (published - reals) if published > reals else math.nan


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else math.nan


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """The mean, and the lowest and the highest where there are several."""
    if not values or math.isnan(mean := _mean(values)):
        return "-"
    lowest, highest = (format(end, form) for end in (min(values), max(values)))
    several = len(values) > 1
    return f"{mean:{form}}{unit}" + (f" ({lowest} to {highest})" if several else "")


def _interval(name: str, lows: Sequence[Mapping[str, float]], highs: Sequence[Mapping[str, float]]) -> str:
    factor, form = {"kid": (1000, ".0f"), "kid_pyramid": (1000, ".0f"), "memorization": (100, ".0f")}.get(
        name, (1, ".2f")
    )
    form = ".0f" if name.startswith("swd_") else form
    low, high = (factor * _mean(run[name] for run in runs) for runs in (lows, highs))
    return "-" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def _time(records: Sequence[Mapping[str, Any]]) -> str:
    return f"{_mean(record['seconds'] for record in records) / 60:.1f} min" if records else "-"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _picture(rows: Mapping[str, Path]) -> bytes:
    """Rows of images, each with its name at the left."""
    font = ImageFont.load_default(size=14)
    strips = {}
    for name, path in rows.items():
        with Image.open(path) as image:
            strips[name] = image.convert("RGB")
    width = max(strip.width for strip in strips.values())
    canvas = Image.new("RGB", (_LABEL_WIDTH + width, sum(strip.height for strip in strips.values())), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for name, strip in strips.items():
        canvas.paste(strip, (_LABEL_WIDTH, top))
        draw.text((_LABEL_WIDTH - 8, top + strip.height / 2), name, fill="black", font=font, anchor="rm")
        top += strip.height
    file = io.BytesIO()
    canvas.save(file, format="webp", quality=90, method=6)
    return file.getvalue()
