"""The report as a file: what it says, what it says is missing, and that it trusts nothing it shows."""

import base64
import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from medgan_jax.errors import UserError
from medgan_jax.images import image_grid, write_png
from medgan_jax.report import frames, page
from medgan_jax.report.plots import PLOTS
from medgan_jax.report.record import read_record
from medgan_jax.workdir import Workdir

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\"'&"


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """They are tested by themselves, and slow; the first of them stands for all."""
    draw = page.draw_plots
    monkeypatch.setattr(page, "draw_plots", lambda record: draw(record) if record.files.path.name == "full" else {})


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def report(files):
    return page.write_report(files).read_text()


def said(text):
    """What stands on the page, in one line."""
    return " ".join(" ".join(Elements(text).words).split())


def missing(text):
    return said(text[text.index('id="missing"') :]) if 'id="missing"' in text else ""


def player_data(text):
    return json.loads(re.search(r'id="player-data">(.*?)</script>', text, re.S)[1])


def test_it_shows_everything(make):
    text = report(make("full"))
    words = said(text)
    for part in (
        "400 of 400 steps", "finished", "1 alarm", "Mode collapse", "step 200, since step 150", "The fakes are alike.",
        "diversity 0.01", "raise latent_dim", "warned", "back to step 100, with lr_gen 0.0002 and lr_dis 0.0001",
        "python train.py --workdir=run", "benign",
        "malignant", "12 images to train on", "data.source phantom", "num_sample_images 4", "floor 40.5",
    ):  # fmt: skip
        assert part in words, part
    assert 'id="missing"' not in text
    pictures = Elements(text).of("img")
    assert all(each["src"].startswith("data:image/") and each["alt"] for each in pictures)
    assert len([each for each in pictures if "png" in each["src"]]) == len(PLOTS)  # the plots
    assert [step for step, _ in player_data(text)["frames"]] == [0, 100, 200, 300, 400]
    assert player_data(text)["alarms"] == [{"step": 200, "title": "Mode collapse"}]
    assert "http" not in text.replace("http-equiv", "")  # no address of any kind
    assert "connect-src 'none'" in Elements(text).of("meta")[1]["content"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([9, 8, 7, 6], "SWD is the lowest yet"),
        ([9, 8, 6, 7], "SWD was lowest at step 300, not long ago"),
        ([9, 6, 7, 8], "SWD has not been lower since step 200: more steps are unlikely to help"),
        ([9], "No alarm was raised."),
    ],
)
def test_one_sentence_tells_whether_to_go_on(make, values, says):
    files = make(alarms=[])
    lines = [{"step": 100 * i, "best_by": "swd", "kid": -i, "swd": value} for i, value in enumerate(values, 1)]
    files.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = re.search("<header>.*?</header>", report(files), re.S)[0]
    assert says in said(header)
    assert 'class="verdict good"' in header
    assert f"best {min(values)} at step" in said(report(files))


def test_small_frames_are_exact(make):
    files = make()
    _, uri = player_data(report(files))["frames"][3]
    with (
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as frame,
        Image.open(files.picture(300)) as grid,
    ):
        np.testing.assert_array_equal(np.asarray(frame.convert("RGB")), np.asarray(grid))


def test_hostile_content_is_text(make):
    files = make(
        "<img src=x onerror=alert(1)>",
        labels={HOSTILE: 12},
        run={"command": HOSTILE, "version": HOSTILE},
        config={"arch": HOSTILE, HOSTILE: HOSTILE, "loss": [HOSTILE]},
        alarms=[{"step": 3, **dict.fromkeys(("since", "title", "sentence", "evidence", "action"), HOSTILE),
                 "remedies": [HOSTILE]}],
    )  # fmt: skip
    text = report(files)
    elements = Elements(text)
    assert all(each["src"].startswith("data:") for each in elements.of("img"))
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert len(elements.of("script")) == 2
    assert "<img src=x" not in text
    assert "\u2028" not in re.search(r'id="player-data">(.*?)</script>', text, re.S)[1]
    assert player_data(text)["alarms"][0]["title"] == HOSTILE


def test_no_character_changes_what_a_text_seems_to_be(make):
    text = report(make(run={"command": "train\u202e.py\x1b\u2066"}, labels={"\u202e\u65e5": 12}))
    assert "train\ufffd.py\ufffd\ufffd" in text
    assert "\ufffd\u65e5" in text
    assert not {"\u202e", "\u2066", "\x1b"} & set(text)


def test_huge_numbers_are_short(make):
    files = make(config={"image_size": 1e300, "num_steps": 1000}, labels={"x" * 3000: 1e308, "y": 2})
    line = {"step": 450, "epoch": 1e300, "images_per_s": 1e308, "loss_gen": -1e308}
    files.metrics.write_text(json.dumps(line) + "\n")
    os.utime(files.metrics, (1e13, 1e13))  # a clock that went wrong
    text = report(files)
    assert max(map(len, re.findall(r"[0-9]+", said(text)))) <= 8  # of a picture's step
    assert "1e+308 images/s" in said(text)
    assert Elements(text).of("meter")[0]["value"] == "1e+308"
    assert len(said(text[text.index("<header>") : text.index("</header>")])) < 500


def test_of_many_alarms_the_last_are_shown(make):
    files = make(alarms=[{"step": step, "title": "Mode collapse"} for step in range(1, 301)])
    text = report(files)
    assert [each["step"] for each in player_data(text)["alarms"]] == list(range(201, 301))
    assert "The last 100 of 300." in said(text)
    assert len([each for each in Elements(text).of("button") if "data-step" in each]) == 100


def test_a_label_that_is_no_text_is_shown(make):
    files = make(labels={"\udcff": 12})  # a file name of other bytes
    assert "?" in report(files)


def test_damage_is_told_and_the_page_made(make):
    files = make()
    with open(files.metrics, "a") as file:
        file.write('{"step": 450, "loss')
    files.dataset.write_text("{")
    files.reals.unlink()
    files.picture(100).unlink()
    files.picture(200).write_bytes(b"\x89PNG no more")
    files.runs.unlink()
    files.health.write_text('{"step": 100}\nnonsense\n[]\n')
    text = report(files)
    told = missing(text)
    for part in (
        "dataset.json is damaged", "The last line of metrics.jsonl is cut short", "The picture of step 100 is missing",
        "The picture of step 200 cannot be read (not an image)", "samples/reals.png", "runs.jsonl is missing",
        "health.jsonl has 2 lines that cannot be read",
    ):  # fmt: skip
        assert part in told, part
    assert [step for step, _ in player_data(text)["frames"]] == [0, 300, 400]
    assert "400 of 400 steps" in said(text)


def test_an_older_version_is_shown_as_far_as_it_goes(make):
    files = make(config={"num_steps": 0, "num_epochs": 200})
    for path in (files.health, files.alarms, files.rollbacks, files.runs, files.evaluations):
        path.unlink()
    config = json.loads(files.config.read_text())
    del config["monitor_every_steps"]
    files.config.write_text(json.dumps(config))
    lines = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    old = ("step", "epoch", "loss_dis", "loss_gen", "score_real", "score_fake_before")
    files.metrics.write_text("".join(json.dumps({name: line[name] for name in old}) + "\n" for line in lines))
    text = report(files)
    words = said(text)
    assert "400 of 600 steps" in words  # 200 epochs of 12 // 4 steps
    assert "not watched" in words
    assert "discriminator 1.4 0.75" in words  # derived
    assert "gradient norms" in missing(text)


@pytest.mark.parametrize("name", ["config.json", "dataset.json", "metrics.jsonl", "alarms.jsonl", "evaluations.jsonl"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"step": -1}\n{"step": 1e400}\n', b"", None])
def test_any_file_may_be_damaged(make, name, content):
    files = make()
    path = files.path / name
    path.unlink()
    if content is None:
        os.mkfifo(path)  # opening it would wait for ever
    else:
        path.write_bytes(content)
    assert player_data(report(files))["frames"]


def test_values_of_any_kind_are_shown(make):
    odd = {"step": 100, "swd": [1], "norms_gen": "x", "title": 7, "remedies": 3, "since": None, "to_step": {}}
    files = make(labels=[1, 2], config={"image_size": "big", "sample_every_steps": 0.1, "data": 3}, alarms=[odd])
    (files.path / "evaluation").mkdir()
    figures = {"figures": {"a": 3, "b": {"value": "x", "floor": 2}}, "protocol": 1}
    (files.path / "evaluation/evaluation.json").write_text(json.dumps(figures))
    assert "Evaluation" in report(files)


def test_the_evaluation_that_was_run_is_shown(make):
    files = make()
    (files.path / "evaluation").mkdir()
    figure = {"title": "PSNR, dB", "better": "higher", "value": 18.25, "low": 17, "high": 19, "floor": {"value": 20.5}}
    written = {"protocol": {"fakes": "106 of run"}, "figures": {"psnr": figure}}
    (files.path / "evaluation/evaluation.json").write_text(json.dumps(written))
    assert "PSNR, dB higher 18.25 (17 to 19) 20.5" in said(report(files))


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda path: None, "there is no such folder; give the workdir"),
        (lambda path: path.write_text(""), "is a file; give the workdir"),
        (lambda path: path.mkdir(), r"has no config.json, metrics.jsonl or pictures; give the workdir"),
    ],
)
def test_what_is_no_workdir_is_refused(tmp_path, prepare, says):
    prepare(tmp_path / "x")
    with pytest.raises(UserError, match=rf"{tmp_path}/x: {says}"):
        page.write_report(Workdir(tmp_path / "x"))


def test_only_the_report_is_written_and_elsewhere_if_asked(make, tmp_path):
    files = make()
    before = sorted(files.path.rglob("*"))
    assert page.write_report(files, tmp_path / "other.html") == tmp_path / "other.html"
    assert sorted(files.path.rglob("*")) == before
    assert page.write_report(files) == files.report
    assert sorted(files.path.rglob("*")) == sorted([*before, files.report])


def test_a_device_is_not_replaced_by_the_report(make, tmp_path):
    os.mkfifo(tmp_path / "device")
    with pytest.raises(UserError, match=rf"{tmp_path}/device: is no file that could be replaced; give another name"):
        page.write_report(make(), tmp_path / "device")
    assert (tmp_path / "device").is_fifo()
    with pytest.raises(UserError, match="is no file"):
        page.write_report(make("other"), tmp_path)


def test_frames_are_encoded_once_and_again_when_the_picture_changes(make, monkeypatch):
    files = make("counted")
    read, opened = frames.read_picture, []
    monkeypatch.setattr(frames, "read_picture", lambda path: opened.append(path.name) or read(path))
    report(files)
    assert len(opened) == 6
    opened.clear()
    report(files)
    assert opened == []
    write_png(files.picture(200), np.zeros((38, 38, 3), np.uint8))
    os.utime(files.picture(200), ns=(1, 1))
    report(files)
    assert opened == [files.picture(200).name]


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
def test_200_frames_are_under_20_mb_and_no_mush(size):
    plan = frames.layout(200, size)
    assert 200 * plan.max_bytes * 4 / 3 < 18.5e6
    images = min(8, plan.images)
    assert images >= 4
    assert images * size // plan.shrink + 2 * images <= plan.side <= 540
    assert size // plan.shrink >= min(size, 64)
    assert frames.layout(50, size).side > frames.layout(51, size).side


@pytest.mark.parametrize(("size", "side"), [(64, 530), (128, 522), (256, 517)])
def test_a_noisy_frame_is_within_its_bytes_at_full_size(tmp_path, size, side):
    random = np.random.default_rng(0)
    lesion = (
        100 + 80 * np.cos(np.linspace(-3, 3, size))[:, None, None] * np.cos(np.linspace(-3, 3, size))[None, :, None]
    )
    images = lesion + random.uniform(-40, 40, (64, 1, 1, 3)) + random.normal(0, 12, (64, size, size, 3))
    write_png(tmp_path / "grid.png", image_grid(images.clip(0, 255).astype(np.uint8)))
    plan = frames.layout(200, size)
    data = base64.b64decode(frames.encode_file(tmp_path / "grid.png", plan).partition(",")[2])
    assert len(data) <= plan.max_bytes
    with Image.open(io.BytesIO(data)) as frame, Image.open(tmp_path / "grid.png") as grid:
        assert frame.size == (side, side)
        kept = plan.images * (size + 2) + 2 if size > 64 else 530
        shown = np.asarray(frame.convert("L"), float)
        whole = np.asarray(grid.convert("L").crop((0, 0, kept, kept)).resize(frame.size, Image.Resampling.BOX), float)
    assert np.abs(shown - whole).mean() < 8  # grey levels; the noise alone is 9 before it is averaged


def test_even_pure_noise_is_within_its_bytes(tmp_path):
    write_png(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (530, 530, 3), np.uint8))
    plan = frames.layout(200, 64)
    data = base64.b64decode(frames.encode_file(tmp_path / "noise.png", plan).partition(",")[2])
    assert 0 < len(data) <= plan.max_bytes


def test_thinning_is_even_keeps_the_last_and_never_takes_back():
    before = set()
    for number in range(1, 1500):
        steps = list(range(0, 10 * number, 10))
        kept = frames.thinned(steps)
        assert len(kept) <= 200
        assert kept[-1] == steps[-1]
        gaps = set(np.diff(kept[:-1]).tolist())
        assert len(gaps) <= 1
        if number > 200:
            assert len(kept) >= 100
            assert set(kept) - {steps[-1], steps[-2]} <= before | {steps[-1]} | set(steps[-3:])
        else:
            assert kept == steps
        before = set(kept)


def test_a_movie_has_frames_of_one_shape(make):
    files = make()
    files.picture(100).write_bytes(b"")
    write_png(files.picture(200), np.zeros((20, 20, 3), np.uint8))  # num_sample_images was another
    pictures = list(frames.movie_frames(read_record(files).pictures))
    assert [picture.shape for picture in pictures] == [(38, 38, 3)] * 3
    np.testing.assert_array_equal(pictures[-1], frames.read_picture(files.picture(400)))
