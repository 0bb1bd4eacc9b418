"""The sections of the report: what a record tells, as HTML. Every text from a file goes through `escaped`."""

import base64
import html
import json
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from medgan_jax.errors import abbreviate
from medgan_jax.report.frames import Frame
from medgan_jax.report.plots import measure_names, with_scores
from medgan_jax.report.record import Record, number

_MAX_TEXT = 4000  # characters shown of one value
_MAX_PART = 200  # of one part of the page's first lines
_UNSEEN = re.compile(  # what would show a text, such as the command, in another order than it has, or hide a part
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
MAX_ALARMS = 100  # shown
_MAX_LABELS = 40
_STALE = 0.3  # share of the training without a better evaluation, which is said
_SPEEDS = (0.5, 1, 2, 4, 8, 16, 30)  # pictures a second
_SPEED = 4
_GROUPS = {
    "Networks": (
        "arch", "image_size", "channels", "latent_dim", "gen_features", "dis_features", "upsample", "conditional",
        "dis_dropout", "dtype",
    ),
    "Length": ("batch_size", "balance_classes", "num_epochs", "num_steps"),
    "Optimisation": (
        "loss", "gp_weight", "r1_weight", "r1_every_steps", "lecam_weight", "consistency_weight", "dis_steps",
        "simultaneous", "lr_gen", "lr_dis", "adam_beta1", "adam_beta2", "real_label",
        "label_flip", "ema_decay", "ema_rampup", "init_from", "seed",
    ),
    "Alarms": ("monitor_every_steps", "alarm_patience", "on_alarm", "rollback_factor", "max_rollbacks"),
    "What is written": (
        "log_every_steps", "sample_every_steps", "checkpoint_every_steps", "keep_checkpoints", "num_sample_images",
        "evaluate_every_steps", "best_measure", "tensorboard", "report", "report_every_minutes",
        "output_prefix",
    ),
}  # fmt: skip
_PLOT_TITLES = {
    "losses": "Losses of both networks over the iterations",
    "scores": "Scores of both networks over the iterations, from 0 to 1, with the line of balance at 0.5",
    "measures": "Evaluation measures over the iterations, each with its floor",
    "diversity": "Diversity of the fakes, their drift, and the diversity of the reals over the iterations",
    "judgements": "Mean logits of training images, held-out images and fakes over the iterations",
    "gradient_norms": "Norms of both networks' gradients over the iterations",
    "spectral_norms": "Largest singular value of each layer of both networks over the iterations",
}
_BUTTONS = {
    "first": ("First picture", "M2 2h2v12H2zM14 2v12L5 8z"),
    "back": ("One picture back", "M12 2v12L4 8z"),
    "forward": ("One picture forward", "M4 2v12l8-6z"),
    "last": ("Last picture", "M12 2h2v12h-2zM2 2v12l9-6z"),
}


def all_sections(
    record: Record,
    title: str,
    frames: Sequence[Frame],
    reals: str,
    plots: dict[str, bytes],
    *,
    shown_images: int,
    live: bool,
) -> str:
    """The page's body, from its title to what is missing.

    Args:
      record: the training.
      title: of the page.
      frames: of the player, in their order.
      reals: data: URI of reals to compare the frames with; empty where there are none.
      plots: PNG files by the names in plots.PLOTS.
      shown_images: in each frame at most; 0: not known.
      live: whether a server gives the page, and says so while it does.
    """
    parts = (
        _head(record, title, live=live),
        _glance(record),
        _missing_note(record),
        _player(record, frames, reals, shown_images),
        _alarms(record),
        _plots(plots),
        _evaluation(record),
        _data(record, reals),
        _reproduction(record),
        _configuration(record),
        _missing(record),
    )
    return "".join(parts)


def escaped(value: Any) -> str:
    """A value of a file's, fit to stand in HTML, attributes included."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)
    text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " ..."
    return html.escape(text.encode(errors="replace").decode())  # file names may hold bytes that are no text


def _figure(value: float | None, *, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _whole(value: float) -> str:
    return f"{value:.0f}" if abs(value) < 1e12 else f"{value:.4g}"


def _section(title: str, body: str, *, name: str) -> str:
    return f"""<section class="panel" id="{name}" aria-labelledby="{name}-title">
<h2 id="{name}-title">{title}</h2>{body}</section>"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; all columns but the first hold numbers."""
    kinds = ["", *[' class="number"'] * (len(head) - 1)]
    columns = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>"
        + f'<th scope="row" class="wrap">{row[0]}</th>'
        + "".join(f'<td class="number">{cell}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(record: Record, title: str, *, live: bool) -> str:
    c = record.config
    size, channels = number(c, "image_size"), number(c, "channels")
    parts = [
        str(c["arch"]).upper() if "arch" in c else "",
        f"{_whole(size)} px {'grey' if channels == 1 else 'RGB'}" if size else "",
        f"{c['loss']} loss" if "loss" in c else "",
    ]
    if images := number(record.dataset, "num_images"):
        labels = record.dataset.get("labels")
        kind = f" of {abbreviate(list(labels))}" if isinstance(labels, dict) and labels else ""
        parts.append(f"{_whole(images)} training images{kind}")
    connection = ' · <span id="connection">live</span>' if live else ""
    return f"""<header><p class="overline">Training report{connection}</p><h1>{escaped(title)}</h1>
<p class="soft">{" · ".join(escaped(part[:_MAX_PART]) for part in parts if part)}</p>{_verdict(record)}</header>"""


def _verdict(record: Record) -> str:
    """One sentence: whether to go on."""
    alarms = record.logs["alarms"]
    if alarms:
        last = alarms[-1]
        first = f"{alarm_title(last)} since step {last.get('since', last['step'])}"
        sentence = f'Look at <a href="#alarms">the alarms</a> before going on: {escaped(first)}.'
        return f'<p class="verdict warn">{sentence}</p>'
    healthy = "No alarm was raised. " if record.is_monitored else ""
    name = _leading_measure(record)
    lines = [line for line in record.logs["evaluations"] if name and number(line, name) is not None]
    if len(lines) < 2:
        return f'<p class="verdict good">{healthy}</p>' if healthy else ""
    best = min(lines, key=lambda line: number(line, name))
    shown = escaped(name.upper())
    if best is lines[-1]:
        sentence = f"{shown} is the lowest yet: more steps may still help."
    elif lines[-1]["step"] - best["step"] >= _STALE * lines[-1]["step"]:
        sentence = f"{shown} has not been lower since step {best['step']}: more steps are unlikely to help."
    else:
        sentence = f"{shown} was lowest at step {best['step']}, not long ago."
    return f'<p class="verdict{" good" if healthy else ""}">{healthy}{sentence}</p>'


def _leading_measure(record: Record) -> str:
    """That by which the best generator is chosen, where it was measured."""
    names = measure_names(record.logs["evaluations"])
    best_by = next((line.get("best_by") for line in reversed(record.logs["evaluations"])), None)
    return best_by if best_by in names else next(iter(names), "")


def _glance(record: Record) -> str:
    return (
        f'<div class="glance">{_progress(record)}{_alarm_card(record)}{_last_card(record)}{_measure_card(record)}</div>'
    )


def _card(title: str, body: str, *, kind: str = "") -> str:
    return f'<div class="panel card{kind and " " + kind}"><p class="overline">{title}</p>{body}</div>'


def _progress(record: Record) -> str:
    step, total = record.step, record.total_steps
    metrics = record.logs["metrics"]
    of = f" <small>of {total} steps</small>" if total else " <small>steps</small>"
    bar = f'<progress max="{total}" value="{min(step, total)}">{step} of {total}</progress>' if total else ""
    epoch = number(metrics[-1], "epoch") if metrics else None
    stopped = any(line.get("action") == "stopped" for line in record.logs["alarms"][-1:])
    if total and step >= total:
        state = "finished"
    elif stopped:
        state = "stopped by an alarm"
    else:
        state = f"last written {_age(record)}"
    rate = number(metrics[-1], "images_per_s") if metrics else None
    parts = [state, f"epoch {_whole(epoch)}" if epoch is not None else "", f"{_whole(rate)} images/s" if rate else ""]
    small = " · ".join(part for part in parts if part)
    return _card("Progress", f'<p class="big">{step}{of}</p>{bar}<p class="soft small">{small}</p>')


def _age(record: Record) -> str:
    files = record.files
    written = [path.stat().st_mtime for path in (files.metrics, files.health, files.config) if path.is_file()]
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(written))) if written else "at an unknown time"


def _alarm_card(record: Record) -> str:
    alarms = record.logs["alarms"]
    if alarms:
        last = alarms[-1]
        small = f'<p class="small">last: <a href="#alarms">{escaped(alarm_title(last))}</a>, step {last["step"]}</p>'
        number_of = f"{len(alarms)} <small>{'alarm' if len(alarms) == 1 else 'alarms'}</small>"
        return _card("Alarms", f'<p class="big">{number_of}</p>{small}', kind="warn")
    if record.is_monitored:
        return _card("Alarms", '<p class="big">none</p><p class="soft small">the training was watched</p>', kind="good")
    return _card("Alarms", '<p class="big">not watched</p><p class="soft small">monitor_every_steps asks for looks</p>')


def _last_card(record: Record) -> str:
    if not record.logs["metrics"]:
        return _card("Losses and scores", '<p class="big">-</p><p class="soft small">nothing was logged yet</p>')
    last = with_scores(record.logs["metrics"][-1])
    rows = [
        (name, *(_figure(number(last, f"{kind}_{key}"), digits=3) for kind in ("loss", "score")))
        for name, key in (("generator", "gen"), ("discriminator", "dis"))
    ]
    note = '<p class="soft small">a score of 0.5 each is balance</p>'
    return _card(f"At step {last['step']}", _table(("", "loss", "score"), rows) + note)


def _measure_card(record: Record) -> str:
    name = _leading_measure(record)
    lines = [line for line in record.logs["evaluations"] if name and number(line, name) is not None]
    if not lines:
        return _card(
            "Evaluation",
            '<p class="big">-</p><p class="soft small">nothing was evaluated; evaluate_every_steps asks for it</p>',
        )
    last = lines[-1]
    best = min(lines, key=lambda line: number(line, name))
    floor = number(last, f"{name}_floor")
    of = f"floor {_figure(floor)}, that of real images<br>" if floor is not None else ""
    small = f'<p class="soft small">{of}best {_figure(number(best, name))} at step {best["step"]}</p>'
    value = f'<p class="big">{_figure(number(last, name))} <small>{escaped(name.upper())}, lower is better</small></p>'
    return _card("Evaluation", value + small)


def _missing_note(record: Record) -> str:
    if not record.missing:
        return ""
    count = f"{len(record.missing)} {'thing is' if len(record.missing) == 1 else 'things are'} missing"
    return f'<p class="soft small note"><a href="#missing">{count}</a> in this workdir.</p>'


def _player(record: Record, frames: Sequence[Frame], reals: str, shown_images: int) -> str:
    if not frames:
        return _section("Pictures over the training", '<p class="empty">There are no pictures yet.</p>', name="player")
    last = frames[-1]
    picture = f'<img src="{last.uri}" alt="Generated images at step {last.step}">'
    real_side = (
        f'<div class="screen"><img src="{reals}" alt="Real images of the training set"></div>'
        if reals
        else '<p class="empty">samples/reals.png is missing</p>'
    )
    buttons = {
        name: f'<button type="button" id="{name}" aria-label="{title}" title="{title}">{_icon(shape, name)}</button>'
        for name, (title, shape) in _BUTTONS.items()
    }
    speeds = "".join(
        f'<option value="{speed:g}"{" selected" if speed == _SPEED else ""}>{speed:g}</option>' for speed in _SPEEDS
    )
    notes = []
    if len(frames) < len(record.pictures):
        notes.append(f"{len(frames)} of {len(record.pictures)} pictures are shown, to keep this file small.")
    total = number(record.config, "num_sample_images")
    if shown_images and total and shown_images < total:
        notes.append(f"Of each picture the first {shown_images} of {_whole(total)} images; samples/ holds all of them.")
    note = f'<p class="soft small note">{" ".join(notes)}</p>' if notes else ""
    return f"""<section class="panel" id="player" tabindex="-1" aria-labelledby="player-title">
<h2 id="player-title">Pictures over the training</h2>
<div class="stage">
<figure><figcaption><span>Generated from fixed latents</span>
<span>step <b id="step">{last.step}</b></span></figcaption><div class="screen" id="screen">{picture}</div></figure>
<figure class="reals"><figcaption><span>Real images</span></figcaption>{real_side}</figure>
<div class="controls" id="controls" hidden>
<div class="track"><input type="range" id="scrub" min="0" max="{len(frames) - 1}" value="{len(frames) - 1}"
aria-label="Picture of the training"><div class="marks" id="marks"></div></div>
<div class="buttons" role="group" aria-label="Player">{buttons["first"]}{buttons["back"]}
<button type="button" class="play" id="play">{_icon("M4 2l10 6-10 6z", "play")}
<span id="play-label">Play</span></button>
{buttons["forward"]}{buttons["last"]}
<label>Speed <select id="speed" aria-label="Pictures a second">{speeds}</select> /s</label>
<label><input type="checkbox" id="loop" checked> Loop</label>
<span class="keys">In the player: <kbd>Space</kbd> <kbd>&larr;</kbd> <kbd>&rarr;</kbd> <kbd>Home</kbd> <kbd>End</kbd>,
speed <kbd>&uarr;</kbd> <kbd>&darr;</kbd></span></div>
</div></div>
<noscript><p class="soft small note">The player needs JavaScript; this is the last picture.</p></noscript>
{note}</section>"""


def _icon(path: str, name: str) -> str:
    return f'<svg viewBox="0 0 16 16" aria-hidden="true"><path id="{name}-icon" d="{path}"/></svg>'


def alarm_title(line: dict[str, Any]) -> str:
    """What a line of alarms.jsonl calls its alarm, not escaped."""
    return str(line.get("title") or line.get("alarm") or "Alarm")[:80]


def _alarms(record: Record) -> str:
    alarms, rollbacks = record.logs["alarms"], record.logs["rollbacks"]
    if not alarms and not rollbacks:
        return ""
    body = [_alarm(line) for line in alarms[-MAX_ALARMS:]]
    if len(alarms) > MAX_ALARMS:
        body.insert(0, f'<p class="soft small">The last {MAX_ALARMS} of {len(alarms)}.</p>')
    if rollbacks:
        items = "".join(
            f"<li>At step {line['step']} ({escaped(line.get('alarm', 'an alarm'))}): back to step "
            f"{escaped(line.get('to_step', '?'))}, with lr_gen {escaped(line.get('lr_gen', '?'))} "
            f"and lr_dis {escaped(line.get('lr_dis', '?'))} from there on.</li>"
            for line in rollbacks[-MAX_ALARMS:]
        )
        body.append(f'<div class="rollbacks"><h3>Rollbacks</h3><ul>{items}</ul></div>')
    return _section("Alarms", "".join(body), name="alarms")


def _alarm(line: dict[str, Any]) -> str:
    remedies = line.get("remedies")
    items = "".join(f"<li>{escaped(remedy)}</li>" for remedy in remedies) if isinstance(remedies, list) else ""
    paragraphs = [
        f"<p>{escaped(line['sentence'])}</p>" if line.get("sentence") else "",
        f'<p class="soft small">Evidence: {escaped(line["evidence"])}</p>' if line.get("evidence") else "",
        f'<p class="small">What helps:</p><ul class="small">{items}</ul>' if items else "",
    ]
    action = f'<span class="tag">{escaped(line["action"])}</span>' if line.get("action") else ""
    since = f", since step {escaped(line['since'])}" if line.get("since", line["step"]) != line["step"] else ""
    return f"""<article class="alarm"><header><h3>{escaped(alarm_title(line))}</h3>
<span class="soft small">step {line["step"]}{since}</span>{action}
<button type="button" class="jump" data-step="{line["step"]}" hidden>Show pictures</button></header>
{"".join(paragraphs)}</article>"""


def _plots(plots: dict[str, bytes]) -> str:
    if not plots:
        return ""
    pictures = "".join(
        f'<img alt="{_PLOT_TITLES[name]}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in plots.items()
    )
    return _section("Curves", f'<div class="plots">{pictures}</div>', name="curves")


def _evaluation(record: Record) -> str:
    body = []
    lines = record.logs["evaluations"]
    if names := measure_names(lines):
        rows = []
        for name in names:
            measured = [line for line in lines if number(line, name) is not None]
            last, best = measured[-1], min(measured, key=lambda line: number(line, name))
            rows.append((
                escaped(name), _figure(number(last, name)), str(last["step"]), _figure(number(best, name)),
                str(best["step"]), _figure(number(last, f"{name}_floor")),
            ))  # fmt: skip
        body.append("<h3>During the training, against held-out reals; lower is better</h3>")
        body.append(_table(("measure", "last", "step", "best", "step", "floor"), rows))
    figures = record.evaluation.get("figures")
    if isinstance(figures, dict) and figures:
        protocol = record.evaluation.get("protocol")
        fakes = protocol.get("fakes", "") if isinstance(protocol, dict) else ""
        rows = [
            (
                f'{escaped(each.get("title", name))} <span class="soft small">{escaped(each.get("better", ""))}</span>',
                _interval(each),
                _interval(each.get("floor")),
            )
            for name, each in figures.items()
            if isinstance(each, dict)
        ]
        body.append(f'<h3 class="note">By evaluate.py: {escaped(fakes)}</h3>')
        body.append(_table(("measure", "fakes (95 %)", "floor: reals (95 %)"), rows))
    if not body:
        return ""
    note = (
        '<p class="soft small note">A floor is the same measure of real images: a perfect generator would reach it.</p>'
    )
    return _section("Evaluation", "".join(body) + note, name="evaluation")


def _interval(values: Any) -> str:
    if not isinstance(values, dict) or number(values, "value") is None:
        return "-"
    low, high = number(values, "low"), number(values, "high")
    ends = "" if low is None or high is None else f' <span class="soft small">({low:.3g} to {high:.3g})</span>'
    return _figure(number(values, "value")) + ends


def _data(record: Record, reals: str) -> str:
    labels = record.dataset.get("labels")
    counts = {name: number(labels, name) for name in labels} if isinstance(labels, dict) else {}
    counts = {name: count for name, count in counts.items() if count is not None}
    most = max(counts.values(), default=0)
    rows = [
        (escaped(name), _whole(count), f'<meter min="0" max="{max(most, 1):g}" value="{count:g}">{count:g}</meter>')
        for name, count in list(counts.items())[:_MAX_LABELS]
    ]
    images = number(record.dataset, "num_images")
    about = [f"{_whole(images)} images to train on" if images else "The number of images is not known"]
    if digest := record.dataset.get("digest"):
        about.append(f"digest <code>{escaped(digest)}</code>")
    body = [f"<p>{', '.join(about)}.</p>"]
    if rows:
        body.append(_table(("label", "images", ""), rows))
    if len(counts) > _MAX_LABELS:
        body.append(f'<p class="soft small">The first {_MAX_LABELS} of {len(counts)} labels.</p>')
    grid = f'<div class="screen"><img src="{reals}" alt="Some of the real images"></div>' if reals else ""
    return _section("Data", f'<div class="data"><div>{"".join(body)}</div>{grid}</div>', name="data")


def _reproduction(record: Record) -> str:
    runs = record.logs["runs"]
    if not runs:
        body = "<p>The command is not known: runs.jsonl is missing. The configuration below says what was trained.</p>"
        return _section("The command", body, name="command")
    first = runs[0]
    about = [
        (name, first[key])
        for key, name in (
            ("started", "started"), ("version", "medgan_jax"), ("jax", "JAX"), ("device", "device"),
            ("num_devices", "devices"),
        )
        if key in first
    ]  # fmt: skip
    body = [f"<pre>{escaped(first.get('command', 'unknown'))}</pre>"]
    body.append(f'<p class="soft small note">{" · ".join(f"{name} {escaped(value)}" for name, value in about)}</p>')
    if len(runs) > 1:
        items = "".join(
            f"<li>from step {line['step']}, {escaped(line.get('started', ''))}: "
            f"<code>{escaped(line.get('command', 'unknown'))}</code></li>"
            for line in runs[1:][-MAX_ALARMS:]
        )
        times = "once" if len(runs) == 2 else f"{len(runs) - 1} times"
        body.append(f"<details><summary>Continued {times}</summary><ul>{items}</ul></details>")
    return _section("The command to reproduce it", "".join(body), name="command")


def _configuration(record: Record) -> str:
    config = dict(record.config)
    if not config:
        return ""
    parts = {title: (name, config.pop(name, {})) for title, name in (("Augmentation", "augment"), ("Data", "data"))}
    groups = {title: {name: config.pop(name) for name in names if name in config} for title, names in _GROUPS.items()}
    for title, (group, fields) in parts.items():
        groups[title] = (
            {f"{group}.{name}": v for name, v in fields.items()} if isinstance(fields, dict) else {group: fields}
        )
    groups["Other"] = config
    tables = "".join(
        f"<div><h3>{title}</h3><table><tbody>{''.join(map(_field, fields.items()))}</tbody></table></div>"
        for title, fields in groups.items()
        if fields
    )
    return _section("Configuration", f'<div class="groups">{tables}</div>', name="configuration")


def _field(field: tuple[str, Any]) -> str:
    name, value = field
    shown = escaped(value) if value != "" else '<span class="soft">not given</span>'
    return f'<tr><th scope="row" class="wrap">{escaped(name)}</th><td class="wrap">{shown}</td></tr>'


def _missing(record: Record) -> str:
    if not record.missing:
        return ""
    items = "".join(
        f'<li>{escaped(what)}. <span class="soft">{escaped(cost)}</span></li>' for what, cost in record.missing[:50]
    )
    return _section("What is missing", f'<ul class="missing">{items}</ul>', name="missing")
