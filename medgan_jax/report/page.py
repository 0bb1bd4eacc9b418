"""The report: one HTML file that shows a training, opens from disk, and asks no network for anything.

Whatever stands in the workdir's files is data of somebody else's: it is escaped, and the page's content security policy
lets only the script and the style of this package run, by their digests.
"""

import base64
import datetime
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from medgan_jax import __version__
from medgan_jax.errors import UserError
from medgan_jax.images import replace_file
from medgan_jax.report.frames import encode_file, layout, page_frames, thinned
from medgan_jax.report.plots import draw_plots
from medgan_jax.report.record import number, read_record
from medgan_jax.report.sections import MAX_ALARMS, alarm_title, all_sections, escaped
from medgan_jax.workdir import Workdir

_REFRESH_SECONDS = 3  # after which a served page asks whether there is a newer one


def write_report(files: Workdir, path: Path | None = None) -> Path:
    """Writes the report of a training, whole or not at all; the training may be going on.

    Args:
      files: the workdir.
      path: the file to write; WORKDIR/report.html by default.

    Returns:
      The path.

    Raises:
      UserError: the workdir is no folder, or holds no training; or the path is a folder or a device.
      OSError: the file cannot be written.
    """
    path = path or files.report
    if path.exists() and not path.is_file():  # to replace a folder fails, to replace a device does not
        raise UserError(f"{path}: is no file that could be replaced; give another name")
    replace_file(path, render(files).encode())
    return path


def render(files: Workdir, *, version: str = "") -> str:
    """The page.

    Args:
      files: the workdir.
      version: for a page that a server gives: it asks the server's /version for another one, and then loads itself
        anew.

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
    plots = draw_plots(record)

    style, script = (Path(__file__).with_name(name).read_text() for name in ("style.css", "player.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        f"connect-src '{'self' if version else 'none'}'; base-uri 'none'; form-action 'none'"
    )
    data = {
        "frames": [[frame.step, frame.uri] for frame in frames],
        "tiny": plan.cell * plan.images <= 400 if plan.cell else False,
        "alarms": [{"step": line["step"], "title": alarm_title(line)} for line in record.logs["alarms"][-MAX_ALARMS:]],
        "live": version,
        "seconds": _REFRESH_SECONDS,
    }
    title = files.path.resolve().name or str(files.path.resolve())
    body = all_sections(
        record, title, frames, reals, plots, shown_images=plan.images**2 if plan.cell else 0, live=bool(version)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">
<title>{escaped(title)} - training report</title>
<style>{style}</style></head><body><main>
{body}
<footer>Made by medgan_jax {escaped(__version__)} at {_now()}. This file needs no other, and no network.</footer>
</main>
<script type="application/json" id="player-data">{_json(data)}</script>
<script>{script}</script>
</body></html>
"""


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(values: Any) -> str:
    """JSON that ends no script element, whatever strings are in it."""
    text = json.dumps(values, separators=(",", ":"))  # ASCII: U+2028 and the like are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
