"""What a training tells of itself, and that telling never ends it."""

import json

import numpy as np
import pytest

from medgan_jax.training import journal as module
from medgan_jax.training.journal import Journal
from medgan_jax.workdir import Workdir, read_lines


@pytest.fixture
def files(tmp_path):
    files = Workdir(tmp_path / "run")
    files.samples.mkdir(parents=True)
    return files


@pytest.fixture
def made(monkeypatch):
    """The names of what is made, as a report takes seconds; the clock stands in `made.now`."""

    class Made(list):
        now = 0.0

    made = Made()
    monkeypatch.setattr(module, "write_report", lambda files: made.append("report"))
    monkeypatch.setattr(module, "write_plots", lambda files: made.append("plots"))
    monkeypatch.setattr(module.time, "monotonic", lambda: made.now)
    return made


def test_a_report_is_made_anew_when_the_last_one_is_old(files, tiny_config, made):
    journal = Journal(files, tiny_config(report=True, report_every_minutes=2.0), first_step=-1)
    for made.now, number in ((60, 0), (119, 0), (121, 1), (180, 1), (242, 2)):
        journal.refresh_report()
        assert made == ["report"] * number
    journal.close()
    assert made == ["report"] * 2
    journal.close(report=True)
    assert made == ["report", "report", "plots", "report"]


def test_no_report_where_none_is_wanted(files, tiny_config, made):
    for wanted, minutes, expected in ((False, 1.0, []), (True, 0.0, ["plots", "report"])):
        journal = Journal(files, tiny_config(report=wanted, report_every_minutes=minutes), first_step=-1)
        made.now += 1e6
        journal.refresh_report()
        assert made == []
        journal.close(report=True)
        assert made == expected


def test_a_report_that_fails_ends_no_training(files, tiny_config, made, monkeypatch):
    def fail(files):
        raise ValueError("no fonts\nat all")

    monkeypatch.setattr(module, "write_report", fail)
    journal = Journal(files, tiny_config(report=True), first_step=-1)
    made.now = 1e6
    with pytest.warns(UserWarning, match=r"report\.html: could not be made \(no fonts\)$"):
        journal.refresh_report()


def test_later_lines_are_forgotten_except_alarms_that_led_back(files, tiny_config):
    journal = Journal(files, tiny_config(tensorboard=True), first_step=-1)
    for step in (2, 4, 6):
        journal.metrics({"step": step, "loss_dis": 0.5})
        journal.health({"step": step, "diversity": 0.1})
        journal.evaluation({"step": step, "best_by": "swd", "swd": 1.0})
        journal.picture(step, np.zeros((4, 16, 16, 3), np.uint8))
    alarm = {"title": "T", "sentence": "S.", "evidence": "e", "remedies": ["r"]}
    journal.alarm({"step": 4, **alarm})
    journal.alarm({"step": 6, **alarm, "rolled_back_to": 2, "rollback": 1})
    journal.close()
    files.append(files.rollbacks, {"step": 6, "to_step": 2})
    Journal(files, tiny_config(), first_step=2)
    for log in (files.metrics, files.health, files.evaluations):
        assert [line["step"] for line in read_lines(log)] == [2]
    assert [json.loads(line)["step"] for line in files.alarms.read_text().splitlines()] == [6]
    assert list(files.pictures()) == [2]
    assert len(list(files.tensorboard.iterdir())) == 1
