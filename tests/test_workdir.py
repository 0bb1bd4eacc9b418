"""Who may continue what, and a metrics log without doubled or missing lines."""

import json

import pytest

from medgan_jax.errors import UserError
from medgan_jax.workdir import Workdir, read_lines

IMAGES = {"digest": "abc", "num_images": 12, "labels": {}}


def line(step):
    return {"step": step, "loss_dis": 0.5}


def begun(tmp_path, tiny_config):
    files = Workdir(tmp_path / "run")
    with files.opened(tiny_config(), IMAGES):
        files.record(tiny_config(), IMAGES)
    return files


def test_the_same_training_may_continue(tmp_path, tiny_config):
    files = begun(tmp_path, tiny_config)
    with files.opened(tiny_config(), IMAGES):
        assert json.loads(files.config.read_text())["arch"] == "sngan"
    longer = tiny_config(num_steps=99, log_every_steps=7, keep_checkpoints=1)
    with files.opened(longer, IMAGES):
        files.record(longer, IMAGES)
    assert json.loads(files.config.read_text())["num_steps"] == 99


def test_without_writing_nothing_is_locked_or_written(tmp_path, tiny_config):
    files = Workdir(tmp_path / "run", writes=False)
    with files.opened(tiny_config(), IMAGES):
        files.record(tiny_config(), IMAGES)
        files.append(files.metrics, line(1))
    assert not files.path.exists()
    leader = begun(tmp_path, tiny_config)
    with leader.opened(tiny_config(), IMAGES), files.opened(tiny_config(), IMAGES):
        leader.append(files.metrics, line(1))
        files.forget_after(0)
    assert len(files.metrics.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "images", "says"),
    [
        ({"lr_dis": 0.1}, IMAGES, "lr_dis: 0.0002 -> 0.1"),
        ({"seed": 1, "arch": "dcgan"}, IMAGES, "arch: 'sngan' -> 'dcgan'; seed: 0 -> 1"),
        ({"data_horizontal_flip": True}, IMAGES, "data.horizontal_flip: False -> True"),
        ({}, IMAGES | {"digest": "def", "num_images": 13}, "the images: 12 with digest abc -> 13 with digest def"),
    ],
)
def test_another_training_is_refused_and_nothing_changes(tmp_path, tiny_config, changes, images, says):
    files = begun(tmp_path, tiny_config)
    before = {path: path.read_bytes() for path in files.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught, files.opened(tiny_config(**changes), images):
        pass
    assert says in str(caught.value)
    assert {path: path.read_bytes() for path in files.path.rglob("*") if path.is_file()} == before


def test_one_training_at_a_time(tmp_path, tiny_config):
    files = Workdir(tmp_path / "run")
    with (
        files.opened(tiny_config(), IMAGES),
        pytest.raises(UserError, match="another training is running"),
        Workdir(tmp_path / "run").opened(tiny_config(), IMAGES),
    ):
        pass
    with files.opened(tiny_config(), IMAGES):  # and the lock goes with its holder
        pass


def test_a_file_is_no_workdir(tmp_path, tiny_config):
    (tmp_path / "run").write_text("hello")
    with pytest.raises(UserError, match="is a file"), Workdir(tmp_path / "run").opened(tiny_config(), IMAGES):
        pass
    with pytest.raises(UserError, match="cannot be written"), Workdir(tmp_path / "run/x").opened(tiny_config(), IMAGES):
        pass
    assert (tmp_path / "run").read_text() == "hello"


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in ("config.json", "dataset.json") for content in ('{"arch": "sng', "[]", "")]
    + [("dataset.json", None)],
)
def test_damaged_records_are_refused(tmp_path, tiny_config, name, content):
    path = begun(tmp_path, tiny_config).path / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(UserError, match="is missing or damaged") as caught:
        Workdir(tmp_path / "run").check(tiny_config(), IMAGES)
    assert name in str(caught.value)


def test_checkpoints_without_a_config_are_refused(tmp_path, tiny_config):
    files = Workdir(tmp_path / "run")
    files.checkpoints.mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.json"), files.opened(tiny_config(), IMAGES):
        pass


def test_metrics_after_a_step_are_forgotten(tmp_path):
    files = Workdir(tmp_path)
    files.forget_after(0)
    assert not files.metrics.exists()
    for step in (2, 4, 6):
        files.append(files.metrics, line(step))
    with files.metrics.open("a") as file:
        file.write('{"step": 8, "epo')  # the crash came here
    for step, value in ((2, 5.0), (4, 7.0), (6, 3.0)):
        files.append(files.evaluations, {"step": step, "swd": value, "kid": -value, "best_by": "swd"})
    assert files.value_of(6, "swd") == 3
    files.forget_after(4)
    assert files.value_of(2, "swd") == 5
    assert files.value_of(2, "kid") == float("inf")  # it was not by this one that the best was chosen
    assert files.value_of(6, "swd") == files.value_of(None, "swd") == float("inf")
    files.append(files.metrics, line(6))
    lines = [json.loads(text) for text in files.metrics.read_text().splitlines()]
    assert [entry["step"] for entry in lines] == [2, 4, 6]
    assert lines[0] == line(2)


def test_alarms_of_rollbacks_stay_unless_a_crash_came_before_the_rollback(tmp_path):
    files = Workdir(tmp_path)
    files.append(files.rollbacks, line(8))
    alarms = [line(2), line(8) | {"rollback": 1}, line(6), line(8) | {"rollback": 2}]
    for alarm in alarms:
        files.append(files.alarms, alarm)
    files.forget_after(4)
    assert list(read_lines(files.alarms)) == alarms[:2]


def test_a_line_after_one_that_was_cut_short_is_whole(tmp_path):
    files = Workdir(tmp_path)
    files.append(files.rollbacks, line(2))
    with files.rollbacks.open("a") as file:
        file.write('{"step": 4, "to_')  # the crash came here
    files.append(files.rollbacks, line(6))
    assert list(read_lines(files.rollbacks)) == [line(2), line(6)]


@pytest.mark.parametrize("field", ["--workdir", "output_prefix"])
def test_pictures_do_not_become_images(tmp_path, tiny_config, field):
    """Beside the images is well; within their folder the next training would see them."""
    (tmp_path / "images").mkdir()

    def check(place):
        inside = {"--workdir": tmp_path / "run", "output_prefix": ""} | {field: place}
        config = tiny_config(
            data_source="folder", data_path=str(tmp_path / "images"), output_prefix=str(inside["output_prefix"])
        )
        Workdir(inside["--workdir"]).check(config)

    check(tmp_path / "images_run")
    with pytest.raises(UserError, match=f"{field}=.*lies within data.path"):
        check(tmp_path / "images/../images/deep/run")
