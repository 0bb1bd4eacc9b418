"""Which run may go on in a workdir, and logs without doubled or missing lines."""

import json
import math

import pytest

from medgan_jax.errors import UserError
from medgan_jax.workdir import Workdir, read_lines

IMAGES = {"digest": "abc", "num_images": 12, "labels": {}}


def line(step):
    return {"step": step, "loss_dis": 0.5}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def files(tmp_path, tiny_config):
    """The workdir of a run that has started."""
    files = Workdir(tmp_path / "run")
    with files.opened(tiny_config(), IMAGES):
        files.record(tiny_config(), IMAGES)
    return files


def test_the_same_run_may_go_on_for_longer_and_log_more_often(files, tiny_config):
    longer = tiny_config(num_steps=99, log_every_steps=7, keep_checkpoints=1)
    with files.opened(longer, IMAGES):
        files.record(longer, IMAGES)
    assert json.loads(files.config.read_text())["num_steps"] == 99


def test_a_process_that_does_not_write_neither_locks_nor_writes(tmp_path, files, tiny_config):
    other = Workdir(tmp_path / "other", writes=False)
    with other.opened(tiny_config(), IMAGES):
        other.record(tiny_config(), IMAGES)
        other.append(other.metrics, line(1))
    assert not other.path.exists()
    reader = Workdir(files.path, writes=False)
    with files.opened(tiny_config(), IMAGES), reader.opened(tiny_config(), IMAGES):
        files.append(files.metrics, line(1))
        reader.forget_after(0)
    assert list(read_lines(files.metrics)) == [line(1)]


@pytest.mark.parametrize(
    ("changes", "images", "says"),
    [
        ({"seed": 1, "arch": "dcgan"}, IMAGES, "arch: 'sngan' -> 'dcgan'; seed: 0 -> 1"),
        ({"data_horizontal_flip": True}, IMAGES, "data.horizontal_flip: False -> True"),
        ({}, IMAGES | {"digest": "def", "num_images": 13}, "the images: 12 with digest abc -> 13 with digest def"),
    ],
)
def test_another_run_is_refused_and_nothing_changes(files, tiny_config, changes, images, says):
    before = contents(files.path)
    with pytest.raises(UserError) as caught, files.opened(tiny_config(**changes), images):
        pass
    assert says in str(caught.value)
    assert contents(files.path) == before


def test_one_run_at_a_time(files, tiny_config):
    first, second = (Workdir(files.path).opened(tiny_config(), IMAGES) for _ in range(2))
    with first, pytest.raises(UserError, match="another training is running"), second:
        pass
    with files.opened(tiny_config(), IMAGES):  # the lock is released
        pass


def test_other_processes_recognise_the_folder_by_its_token(tmp_path, files):
    assert Workdir(files.path, writes=False).write_token() is None
    assert Workdir(files.path, writes=False).has_token(files.write_token())


def test_a_file_is_no_workdir(tmp_path, tiny_config):
    (tmp_path / "run").write_text("hello")
    for name, says in (("run", "is a file"), ("run/x", "cannot be written")):
        with pytest.raises(UserError, match=says), Workdir(tmp_path / name).opened(tiny_config(), IMAGES):
            pass
    assert (tmp_path / "run").read_text() == "hello"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"arch": "sng'),
        ("config.json", "[]"),
        ("dataset.json", ""),
        ("dataset.json", None),
        ("config.json", "[" * 9999),
    ],
)
def test_damaged_or_missing_records_are_named(files, tiny_config, name, content):
    path = files.path / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"{name}: is missing or damaged .*; restore it"):
        files.check(tiny_config(), IMAGES)


@pytest.mark.parametrize(
    ("folder", "says"), [("checkpoints", r"no config\.json"), ("seed_3", "several seeds; give --seeds .*run/seed_3")]
)
def test_a_folder_of_something_else_is_refused(tmp_path, tiny_config, folder, says):
    (tmp_path / "run" / folder).mkdir(parents=True)
    (tmp_path / "run" / folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=says):
        Workdir(tmp_path / "run").check(tiny_config(), IMAGES)


@pytest.mark.parametrize("field", ["workdir", "output_prefix"])
def test_pictures_may_not_be_written_among_the_training_images(tmp_path, tiny_config, field):
    (tmp_path / "images").mkdir()

    def check(place):
        places = {"workdir": tmp_path / "run", "output_prefix": ""} | {field: place}
        prefix = str(places["output_prefix"])
        config = tiny_config(data_source="folder", data_path=str(tmp_path / "images"), output_prefix=prefix)
        Workdir(places["workdir"]).check(config)

    check(tmp_path / "images_run")
    with pytest.raises(UserError, match=f"{field}=.*lies within data.path"):
        check(tmp_path / "images/../images/deep/run")


def test_logs_and_pictures_of_later_steps_are_dropped(tmp_path):
    files = Workdir(tmp_path)
    files.forget_after(0)
    assert not files.metrics.exists()
    files.samples.mkdir()
    for step in (2, 4, 6):
        files.append(files.metrics, line(step))
        files.picture(step).touch()
    with files.metrics.open("a") as file:
        file.write('{"step": 8, "epo')  # a crash
    files.forget_after(4)
    files.append(files.metrics, line(6))
    assert [json.loads(text) for text in files.metrics.read_text().splitlines()] == [line(2), line(4), line(6)]
    assert list(files.pictures()) == [2, 4]


def test_a_line_after_one_that_was_cut_short_is_whole(tmp_path):
    files = Workdir(tmp_path)
    files.append(files.rollbacks, line(2))
    with files.rollbacks.open("a") as file:
        file.write('{"step": 4, "to_')  # a crash
    files.append(files.rollbacks, line(6))
    assert list(read_lines(files.rollbacks)) == [line(2), line(6)]


def test_alarms_of_a_rollback_stay_unless_a_crash_prevented_it(tmp_path):
    files = Workdir(tmp_path)
    files.append(files.rollbacks, line(8))
    alarms = [line(2), line(8) | {"rollback": 1}, line(6), line(8) | {"rollback": 2}]
    for alarm in alarms:
        files.append(files.alarms, alarm)
    files.forget_after(4)
    assert list(read_lines(files.alarms)) == alarms[:2]


def test_the_best_value_counts_only_by_its_measure(tmp_path):
    files = Workdir(tmp_path)
    how = {"best_by": "swd", "features": "pyramid"}
    files.append(files.evaluations, {"step": 2, "swd": 5.0, "kid": -5.0} | how)
    assert files.best_value(2, how) == 5
    for step, other in ((2, {"best_by": "kid"}), (2, {"features": "pixels"}), (6, {}), (None, {})):
        assert files.best_value(step, how | other) == math.inf
