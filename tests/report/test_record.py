"""What is read of a workdir, and with how much patience."""

import math

import pytest

from medgan_jax.errors import UserError
from medgan_jax.report.record import number, read_record
from medgan_jax.workdir import Workdir


def test_only_finite_numbers_are_numbers():
    for value in (math.nan, math.inf, -math.inf, 10**400, True, "1", None, [1]):
        assert number({"x": value}, "x") is None
    assert number({}, "x") is None
    assert number({"x": 3}, "x") == 3


def test_lines_come_in_the_order_of_their_steps_with_those_of_no_step_left_out(make):
    files = make()
    files.metrics.write_text('{"step": 9}\n{"step": 3}\n{"step": true}\n{"step": 1e3}\n{"loss_gen": 1}\n{"step": 12}')
    record = read_record(files)
    assert [line["step"] for line in record.logs["metrics"]] == [3, 9, 12]  # the last one may lack its end
    assert ("metrics.jsonl has 3 lines that cannot be read", "They are left out.") in record.missing


@pytest.mark.parametrize(
    ("config", "steps"),
    [({"num_steps": 70}, 70), ({"num_steps": 0, "num_epochs": 5}, 15), ({"num_steps": 1e300}, None),
     ({"num_steps": 0, "num_epochs": 5, "batch_size": 0}, None), ({"num_steps": -3}, None)],
)  # fmt: skip
def test_the_length_of_a_training_is_counted_in_steps(make, config, steps):
    assert read_record(make(config=config)).total_steps == steps  # 12 images, 4 in a batch


@pytest.mark.parametrize(("wanted", "said"), [(0, set()), (100, {"evaluations.jsonl", "health.jsonl"})])
def test_what_was_not_wanted_is_not_missing(make, wanted, said):
    files = make(config={"evaluate_every_steps": wanted, "monitor_every_steps": wanted})
    files.evaluations.unlink()
    files.health.unlink()
    assert {what.removesuffix(" is missing") for what, _ in read_record(files).missing} == said


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
        read_record(Workdir(tmp_path / "x"))
