"""What an evaluation leaves behind can be read, by people and programs, and runs nothing."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from medgan_jax.errors import UserError
from medgan_jax.evaluation import page
from medgan_jax.evaluation.report import Figure, Report
from medgan_jax.metrics.distribution.bootstrap import Estimate

HOSTILE = '<script src="http://x">&"'


@pytest.fixture
def report():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    return Report(
        protocol={"fakes": f"3 of {HOSTILE}", "features": "pixels", "seed": 0},
        figures=(
            Figure(
                "kid", "KID", "Distances", "lower", Estimate(0.123456789, 0.1, 0.2), Estimate(0, -0.1, 0.1), "", "good"
            ),
            Figure("memorization", "Copies", "Memorization", "lower", Estimate(0.0, 0.0, 0.1), None, HOSTILE),
        ),
        skipped=("fid: needs 20 images",),
        grids={"Fakes": images, "Reals": images},
        closest=(images, images, np.array([0.1, 0.2, 0.3])),
        closest_of=f"{HOSTILE} \udcff",  # a folder's name that is no text
        memorized=((7, 2, 0.0123456789),),
    )


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_files(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    page.prepare(folder)
    page.write(report, folder)

    values = json.loads((folder / page.JSON).read_text())
    assert values["protocol"] == report.protocol
    assert values["figures"]["kid"]["value"] == pytest.approx(0.123457)
    assert values["figures"]["kid"]["reals"] == {"value": 0, "low": -0.1, "high": 0.1}
    assert values["figures"]["kid"]["verdict"] == "good"
    assert values["figures"]["memorization"]["reals"] is None
    assert values["memorized"] == [{"fake": 7, "training_image": 2, "distance": pytest.approx(0.0123457)}]
    assert values["skipped"] == ["fid: needs 20 images"]

    elements = Elements()
    elements.feed((folder / page.PAGE).read_text())
    assert "script" not in {tag for tag, _ in elements.found}
    pictures = [attributes["src"] for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == 3
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    for text in (f"3 of {HOSTILE}", f"lower is better; {HOSTILE}", "0.123 (0.1 to 0.2)", "fid: needs 20 images"):
        assert text in elements.text


def test_table(report):
    lines = str(report).splitlines()
    first, kid = (line for line in lines if "KID" in line)
    assert lines[0].split() == ["LOOK", "AT", "THESE", "FIRST", "fakes", "reals"] and first == lines[1]
    assert first.endswith("  GOOD") and any(line.startswith("  good: as real images") for line in lines)
    for line in (first, kid):
        assert "lower is better" in line and "0.123 (0.1 to 0.2)" in line and "0 (-0.1 to 0.1)" in line
    assert "not measured: fid: needs 20 images" in lines


def test_a_notebook_shows_the_tables(report):
    elements = Elements()
    elements.feed(report._repr_html_())
    assert {"script", "img", "html"}.isdisjoint(tag for tag, _ in elements.found)
    for text in ("distance from real images", f"lower is better; {HOSTILE}", "0.123 (0.1 to 0.2)"):
        assert text in elements.text


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        page.prepare(tmp_path / "file")
