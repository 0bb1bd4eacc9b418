"""The model card says what is known of a generator, and keeps what its owner wrote."""

import json
import logging

import pytest
import yaml

from medgan_jax.config import Config
from medgan_jax.report.card import write_card
from medgan_jax.workdir import Workdir

FIGURE = {"title": "Recall | a", "value": 0.25, "low": 0.1, "high": 0.4, "reals": {"value": 0.5}}


@pytest.fixture
def files(tmp_path):
    files = Workdir(tmp_path)
    config = Config().to_dict() | {"image_size": 32, "channels": 1, "init_from": "/home/secret", "lr_gen": 0.5}
    config["data"] |= {"path": "/home/secret", "fit": "pad"}
    dataset = {"digest": "0123", "num_images": 7, "labels": {"benign": 4, "malignant": 3}}
    files.generator.mkdir()
    for path, values in ((files.config, config), (files.dataset, dataset), (files.metrics, {"step": 60})):
        path.write_text(json.dumps(values) + "\n")
    return files


def card(files):
    write_card(files)
    return (files.generator / "README.md").read_text()


def test_it_says_what_is_known_and_no_paths(files):
    text = card(files)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "medgan_jax"
    for said in (
        "7 images (benign 4, malignant 3), 32 x 32 px, grey; digest 0123.",
        "60 steps of 16 images",
        "| lr_gen | 0.5 |",
        "| data.fit | pad |",
        "Not evaluated yet",
    ):
        assert said in body
    assert "secret" not in text


def test_the_best_generator_has_one_of_its_own_step(files):
    (files.best / "40").mkdir(parents=True)
    write_card(files)
    assert "40 steps of 16 images" in (files.best / "README.md").read_text()


def test_figures_are_added_and_what_the_owner_wrote_stays(files):
    path = files.generator / "README.md"
    card(files)
    path.write_text(path.read_text().replace("license: other", "license: mit") + "My words.\n")
    (files.path / "evaluation").mkdir()
    protocol = {"fakes": "113 of runs/a at step 60", "reference": "28 of lesions, held out"}
    evaluation = {"protocol": protocol, "figures": {"recall": FIGURE}}
    (files.path / "evaluation/evaluation.json").write_text(json.dumps(evaluation))
    text = card(files)
    assert "license: mit" in text and text.endswith("My words.\n")
    assert "113 fakes of step 60, compared with 28 real images" in text
    assert r"| Recall \| a | 0.25 (0.1 to 0.4) | 0.5 |" in text
    assert card(files) == text


def test_a_card_of_the_owners_own_is_left_alone(files, caplog):
    path = files.generator / "README.md"
    path.write_text("# Mine\n")
    assert card(files) == "# Mine\n"
    path.write_bytes(b"\xff")
    write_card(files)
    assert path.read_bytes() == b"\xff"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
