"""The report as a file: what it says, what it says is missing, and that it trusts nothing it shows."""

import html.parser
import json
import os
import re

import pytest

from medgan_jax.errors import UserError
from medgan_jax.report.page import write_report

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\"'&"


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
    return write_report(files).read_text()


def said(text):
    """What stands on the page, in one line."""
    return " ".join(" ".join(Elements(text).words).split())


def missing(text):
    return said(text[text.index('id="missing"') :]) if 'id="missing"' in text else ""


def player_data(text):
    return json.loads(re.search(r'id="player-data">(.*?)</script>', text, re.S)[1])


def test_it_shows_everything(make):
    """With its plots."""
    files = make(config={"lr_gen": 0.0002, "of_a_plugin": "x", "monitor_every_steps": 0})
    files.health.unlink()
    (files.path / "evaluation").mkdir()
    figure = {"title": "PSNR, dB", "better": "higher", "value": 18.25, "low": 17, "high": 19, "reals": {"value": 20.5}}
    written = {"protocol": {"fakes": "106 of run", "features": "inception: weights 3"}, "figures": {"psnr": figure}}
    (files.path / "evaluation/evaluation.json").write_text(json.dumps(written))
    text = report(files)
    words = said(text)
    for part in (
        "400 of 400 steps", "finished", "1 alarm", "Mode collapse", "step 200, since step 150", "The fakes are alike.",
        "diversity 0.01", "raise latent_dim", "warned", "back to step 100, with lr_gen 0.0002 and lr_dis 0.0001",
        "python train.py --workdir=run", "benign 9", "malignant 3", "12 images to train on", "real images 40.5",
        "PSNR, dB higher 18.25 (17 to 19) 20.5", "Data data.source phantom", "Other of_a_plugin x",
        "KID by lite1: weights 2.", "Features: inception: weights 3.",
    ):  # fmt: skip
        assert part in words, part
    fields = words[words.index("Configuration") :]
    places = [fields.index(part) for part in ("Networks", "arch sngan", "Optimisation", "lr_gen 0.0", "Other")]
    assert places == sorted(places)
    assert 'id="missing"' not in text
    pictures = Elements(text).of("img")
    assert all(each["src"].startswith("data:image/") and each["alt"] for each in pictures)
    assert len([each for each in pictures if "png" in each["src"]]) == 4  # the plots, without those of health checks
    assert [step for step, _ in player_data(text)["frames"]] == [0, 100, 200, 300, 400]
    assert player_data(text)["alarms"] == [{"step": 200, "title": "Mode collapse"}]
    assert "http" not in text.replace("http-equiv", "")  # no address of any kind
    assert "connect-src 'none'" in Elements(text).of("meta")[1]["content"]


@pytest.mark.usefixtures("no_plots")
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
    text = report(files)
    header = re.search("<header>.*?</header>", text, re.S)[0]
    assert says in said(header)
    assert 'class="verdict good"' in header
    assert f"best {min(values)} at step" in said(text)


@pytest.mark.usefixtures("no_plots")
def test_hostile_content_is_text(make):
    files = make(
        "<img src=x onerror=alert(1)>",
        labels={HOSTILE: 12, "\udcff": 3},  # a file name of bytes that are no text
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
    assert said(text).count(" ".join(HOSTILE.split())) > 10


@pytest.mark.usefixtures("no_plots")
def test_no_character_changes_what_a_text_seems_to_be(make):
    files = make(run={"command": "train\u202e.py\x1b\u2066"}, labels={"\u202e\u65e5": 12}, config={"arch": "\u202ea"})
    text = report(files)
    for part in ("train\ufffd.py\ufffd\ufffd", "\ufffd\u65e5", "\ufffda", "\ufffdA"):
        assert part in text
    assert not {"\u202e", "\u2066", "\x1b"} & set(text)


@pytest.mark.usefixtures("no_plots")
def test_what_is_huge_is_short(make):
    files = make(
        config={"image_size": 1e300, "num_steps": 1000},
        labels={"x" * 3000: 1e308, "y": 2},
        alarms=[{"step": step, "title": "Mode collapse"} for step in range(1, 301)],
    )
    line = {"step": 450, "epoch": 1e300, "images_per_s": 1e308, "loss_gen": -1e308}
    files.metrics.write_text(json.dumps(line) + "\n")
    text = report(files)
    assert max(map(len, re.findall(r"[0-9]+", said(text)))) <= 8  # of a picture's step
    assert "1e+308 images/s" in said(text)
    assert Elements(text).of("meter")[0]["value"] == "1e+308"
    assert len(said(text[text.index("<header>") : text.index("</header>")])) < 500
    assert [each["step"] for each in player_data(text)["alarms"]] == list(range(201, 301))
    assert "The last 100 of 300." in said(text)
    assert len([each for each in Elements(text).of("button") if "data-step" in each]) == 100


@pytest.mark.usefixtures("no_plots")
def test_damage_is_told_and_the_page_made(make):
    files = make()
    with open(files.metrics, "a") as file:
        file.write('{"step": 450, "loss')
    files.dataset.write_text("{")
    files.reals.unlink()
    files.picture(200).write_bytes(b"\x89PNG no more")
    files.runs.unlink()
    files.health.write_text('{"step": 100}\nnonsense\n[]\n')
    text = report(files)
    told = missing(text)
    for part in (
        "dataset.json is damaged", "The last line of metrics.jsonl is cut short", "samples/reals.png",
        "The picture of step 200 cannot be read (not an image)", "runs.jsonl is missing",
        "health.jsonl has 2 lines that cannot be read",
    ):  # fmt: skip
        assert part in told, part
    assert [step for step, _ in player_data(text)["frames"]] == [0, 100, 300, 400]
    assert "400 of 400 steps" in said(text)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", ["config.json", "dataset.json", "metrics.jsonl", "alarms.jsonl", "evaluations.jsonl"])
def test_any_file_may_be_damaged(make, name):
    path = (files := make()).path / name
    for content in (b"\xff\xfe\x00", b"[" * 100_000, b'{"step": -1}\n{"step": 1e400}\n', b""):
        path.write_bytes(content)
        assert player_data(report(files))["frames"]
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever
    assert player_data(report(files))["frames"]


@pytest.mark.usefixtures("no_plots")
def test_values_of_any_kind_are_shown(make):
    odd = {"step": 100, "swd": [1], "norms_gen": "x", "title": 7, "remedies": 3, "since": None, "to_step": {}}
    files = make(labels=[1, 2], config={"image_size": "big", "sample_every_steps": 0.1, "data": 3}, alarms=[odd])
    (files.path / "evaluation").mkdir()
    figures = {"figures": {"a": 3, "b": {"value": "x", "reals": 2}}, "protocol": 1}
    (files.path / "evaluation/evaluation.json").write_text(json.dumps(figures))
    assert "Evaluation" in report(files)


@pytest.mark.usefixtures("no_plots")
def test_only_the_report_is_written_and_elsewhere_if_asked(make, tmp_path):
    files = make()
    before = sorted(files.path.rglob("*"))
    assert write_report(files, tmp_path / "other.html") == tmp_path / "other.html"
    assert sorted(files.path.rglob("*")) == before
    assert write_report(files) == files.report
    assert sorted(files.path.rglob("*")) == sorted([*before, files.report])
    os.mkfifo(tmp_path / "device")
    for place in (tmp_path / "device", tmp_path):
        with pytest.raises(UserError, match=rf"{place}: is no file that could be replaced; give another name"):
            write_report(files, place)
    assert (tmp_path / "device").is_fifo()
