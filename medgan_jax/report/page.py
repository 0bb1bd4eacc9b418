"""The report: one HTML file that shows a training, opens from disk, and asks no network for anything.

This module computes plain values, and `page.html.j2` makes a page of them. Whatever stands in the workdir's files is
data of somebody else's: the template escapes it, and the page's content security policy lets only the script and the
style of this package run, by their digests.
"""

import base64
import datetime
import functools
import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from medgan_jax import __version__
from medgan_jax.config import field_groups
from medgan_jax.errors import UserError, abbreviate
from medgan_jax.files import replace_file
from medgan_jax.html import environment
from medgan_jax.report.frames import Frame, encode_file, layout, page_frames, thinned
from medgan_jax.report.plots import PLOTS, draw_plots
from medgan_jax.report.record import Record, measure_names, number, read_record, sources
from medgan_jax.workdir import Workdir

REFRESH_SECONDS = 3.0  # after which a served page asks whether there is a newer one

_MAX_TEXT = 4000  # characters shown of one value
_MAX_PART = 200  # of one part of the page's second line
_UNSEEN = re.compile(  # what would show a text, such as the command, in another order than it has, or hide a part
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MAX_SHOWN = 100  # of alarms, rollbacks and runs
_MAX_LABELS = 40
_STALE = 0.3  # share of the training without a better evaluation, which is said
_GREATEST = 1e12  # written out


def write_report(files: Workdir, path: Path | None = None) -> Path:
    """Writes the report of a training, which may be going on, whole or not at all; returns its path.

    By default that is WORKDIR/report.html.

    Raises:
      UserError: the workdir is no folder, or holds no training; or the path is a folder or a device.
      OSError: the file cannot be written.
    """
    path = path or files.report
    if path.exists() and not path.is_file():  # to replace a folder fails, to replace a device does not
        raise UserError(f"{path}: is no file that could be replaced; give another name")
    replace_file(path, render(files).encode())
    return path


def render(files: Workdir, *, version: str = "", refresh_seconds: float = REFRESH_SECONDS) -> str:
    """The page as HTML. With a `version` it asks its server's /version for another one, and then loads itself anew.

    Raises:
      UserError: as for `write_report`.
    """
    record = read_record(files)
    steps = thinned(list(record.pictures))
    size = int(number(record.config, "image_size") or 0)
    plan = layout(len(steps), size if 0 < size <= 4096 else 0)
    frames, damaged = page_frames({step: record.pictures[step] for step in steps}, plan)
    for step, reason in damaged.items():
        record.missing.append((f"The picture of step {step} cannot be read ({reason})", "The player passes over it."))
    reals = encode_file(files.reals, plan)
    if not reals.startswith("data:"):
        lost = "There are no reals to compare the pictures with."
        record.missing.append((f"samples/reals.png cannot be read ({reals.lower()})", lost))
        reals = ""

    style, script = (Path(__file__).with_name(name).read_text() for name in ("style.css", "player.js"))
    alarms = record.logs["alarms"][-_MAX_SHOWN:]
    return _template().render(
        policy=f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        f"connect-src '{'self' if version else 'none'}'; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        player={
            "frames": [[frame.step, frame.uri] for frame in frames],
            "tiny": 0 < plan.cell * plan.images <= 400,
            "alarms": [{"step": line["step"], "title": _text(_title(line))} for line in alarms],
            "live": version,
            "seconds": refresh_seconds,
        },
        title=files.path.resolve().name or str(files.path.resolve()),
        frames=frames,
        frame_notes=_frame_notes(record, frames, plan.images**2 if plan.cell else 0),
        reals=reals,
        plots=[(PLOTS[name].title, base64.b64encode(png).decode()) for name, png in draw_plots(record).items()],
        version=__version__,
        made=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
        **_context(record),
    )


@functools.cache
def _template() -> jinja2.Template:
    templates = environment(Path(__file__).parent, finalize=_text)
    templates.filters |= {"short": _short, "whole": _whole}
    return templates.get_template("page.html.j2")


def _text(value: Any) -> Any:
    """A value as text that is fit to be escaped and shown; what is HTML already stays."""
    if isinstance(value, Markup):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " ..."
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def _short(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _whole(value: float) -> str:
    return f"{value:.0f}" if abs(value) < _GREATEST else f"{value:.4g}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(line: dict[str, Any]) -> str:
    """What a line of alarms.jsonl calls its alarm."""
    return str(line.get("title") or line.get("alarm") or "Alarm")[:80]


def _context(record: Record) -> dict[str, Any]:
    """What the template shows of the logs, the configuration and the data."""
    logs = record.logs
    measures = _measures(record)
    best_by = next((line.get("best_by") for line in reversed(logs["evaluations"])), None)
    leading = next((each for each in measures if each["name"] == best_by), next(iter(measures), None))
    last = logs["metrics"][-1] if logs["metrics"] else {}
    return {
        "summary": _summary(record),
        "verdict": _verdict(record, leading),
        "leading": leading,
        "measures": measures,
        "features": _features(logs["evaluations"][-1]) if measures else "",
        "progress": _progress(record, last),
        "last": last,
        "last_rows": [
            (network, number(last, f"loss_{key}"), number(last, f"score_{key}"))
            for network, key in (("generator", "gen"), ("discriminator", "dis"))
        ],
        "monitored": record.is_monitored,
        "num_alarms": len(logs["alarms"]),
        "alarms": [_alarm(line) for line in logs["alarms"][-_MAX_SHOWN:]],
        "rollbacks": [
            {"step": line["step"]} | {name: line.get(name, "?") for name in ("alarm", "to_step", "lr_gen", "lr_dis")}
            for line in logs["rollbacks"][-_MAX_SHOWN:]
        ],
        "evaluation": _evaluation(record.evaluation),
        "data": _data(record.dataset),
        "runs": [
            {"step": line["step"], "command": line.get("command", "unknown"), "started": line.get("started", "")}
            for line in [*logs["runs"][:1], *logs["runs"][1:][-_MAX_SHOWN:]]
        ],
        "num_runs": len(logs["runs"]),
        "made_with": _made_with(logs["runs"][0]) if logs["runs"] else "",
        "groups": _configuration(record.config),
        "missing": record.missing,
    }


def _summary(record: Record) -> str:
    """The page's second line: what was trained on what."""
    c = record.config
    size, images = number(c, "image_size"), number(record.dataset, "num_images")
    labels = record.dataset.get("labels")
    kind = f" of {abbreviate(list(labels))}" if isinstance(labels, dict) and labels else ""
    parts = [
        str(c["arch"]).upper() if "arch" in c else "",
        f"{_whole(size)} px {'grey' if c.get('channels') == 1 else 'RGB'}" if size else "",
        f"{c['loss']} loss" if "loss" in c else "",
        f"{_whole(images)} training images{kind}" if images else "",
    ]
    return " · ".join(part[:_MAX_PART] for part in parts if part)


def _verdict(record: Record, leading: dict[str, Any] | None) -> dict[str, str]:
    """One sentence: whether to go on."""
    if alarms := record.logs["alarms"]:
        last = alarms[-1]
        return {"kind": "warn", "text": f"{_title(last)} since step {last.get('since', last['step'])}."}
    healthy = "No alarm was raised. " if record.is_monitored else ""
    sentence = ""
    if leading and leading["count"] > 1:
        name, best_step, last_step = leading["name"].upper(), leading["best_step"], leading["last_step"]
        if best_step == last_step:
            sentence = f"{name} is the lowest yet: more steps may still help."
        elif last_step - best_step >= _STALE * last_step:
            sentence = f"{name} has not been lower since step {best_step}: more steps are unlikely to help."
        else:
            sentence = f"{name} was lowest at step {best_step}, not long ago."
    return {"kind": "good" if healthy else "", "text": healthy + sentence}


def _measures(record: Record) -> list[dict[str, Any]]:
    """Each measure of the evaluations: its last value, its best one, and that of the reals."""
    measures = []
    for name in measure_names(record.logs["evaluations"]):
        lines = [line for line in record.logs["evaluations"] if number(line, name) is not None]
        last, best = lines[-1], min(lines, key=lambda line: line[name])
        measures.append(
            {
                "name": name,
                "count": len(lines),
                "last": number(last, name),
                "last_step": last["step"],
                "best": number(best, name),
                "best_step": best["step"],
                "reals": number(last, f"{name}_reals"),
            }
        )
    return measures


def _features(line: dict[str, Any]) -> str:
    """What a line of evaluations.jsonl says of the features that KID is of; earlier ones have no description."""
    return ": ".join(str(line[name]) for name in ("features", "features_description") if name in line)


def _progress(record: Record, last: dict[str, Any]) -> dict[str, Any]:
    step, total = record.step, record.total_steps
    if total and step >= total:
        state = "finished"
    elif any(line.get("action") == "stopped" for line in record.logs["alarms"][-1:]):
        state = "stopped by an alarm"
    else:
        written = max((path.stat().st_mtime for path in sources(record.files) if path.is_file()), default=0)
        state = time.strftime("last written %Y-%m-%d %H:%M UTC", time.gmtime(written))
    epoch, rate = number(last, "epoch"), number(last, "images_per_s")
    parts = [state, f"epoch {_whole(epoch)}" if epoch is not None else "", f"{_whole(rate)} images/s" if rate else ""]
    return {"step": step, "total": total, "state": " · ".join(part for part in parts if part)}


def _frame_notes(record: Record, frames: Sequence[Frame], shown_images: int) -> str:
    """What the player leaves out; `shown_images`: in each frame at most, 0 where that is not known."""
    notes = []
    if len(frames) < len(record.pictures):
        notes.append(f"{len(frames)} of {len(record.pictures)} pictures are shown, to keep this file small.")
    total = number(record.config, "num_sample_images")
    if shown_images and total and shown_images < total:
        notes.append(f"Of each picture the first {shown_images} of {_whole(total)} images; samples/ holds all of them.")
    return " ".join(notes)


def _alarm(line: dict[str, Any]) -> dict[str, Any]:
    remedies = line.get("remedies")
    return {
        "title": _title(line),
        "step": line["step"],
        "since": line.get("since", line["step"]),
        "remedies": remedies if isinstance(remedies, list) else [],
    } | {name: line.get(name) for name in ("sentence", "evidence", "action")}


_OF_PROTOCOL = ("fakes", "features", "trained_through")


def _evaluation(written: dict[str, Any]) -> dict[str, Any]:
    """What evaluate.py found: values of the fakes and of reals, each with its 95 % interval."""

    def estimate(values: Any) -> dict[str, float | None]:
        values = values if isinstance(values, dict) else {}
        return {name: number(values, name) for name in ("value", "low", "high")}

    figures, protocol = written.get("figures"), written.get("protocol")
    return {
        **{name: protocol.get(name, "") if isinstance(protocol, dict) else "" for name in _OF_PROTOCOL},
        "figures": [
            (each.get("title", name), each.get("better", ""), [estimate(each), estimate(each.get("reals"))])
            for name, each in (figures.items() if isinstance(figures, dict) else ())
            if isinstance(each, dict)
        ],
    }


def _data(dataset: dict[str, Any]) -> dict[str, Any]:
    labels = dataset.get("labels")
    counts = {name: number(labels, name) for name in labels} if isinstance(labels, dict) else {}
    known = [(name, count) for name, count in counts.items() if count is not None]
    return {
        "num_images": number(dataset, "num_images"),
        "digest": dataset.get("digest"),
        "labels": known[:_MAX_LABELS],
        "num_labels": len(known),
        "most": max((count for _, count in known), default=1),
    }


def _made_with(run: dict[str, Any]) -> str:
    names = {"started": "started", "version": "medgan_jax", "jax": "JAX", "device": "device", "num_devices": "devices"}
    return " · ".join(f"{name} {run[key]}" for key, name in names.items() if key in run)


def _configuration(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by field, in the groups of the schema; fields that it does not have come last."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    groups = {
        title: {name: fields.pop(name) for name in names if name in fields} for title, names in field_groups().items()
    }
    return {title: values for title, values in (groups | {"Other": fields}).items() if values}
