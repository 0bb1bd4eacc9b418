"""Several seeds in one program: each its own run, with a workdir of its own."""

import json
import shutil

import jax
import numpy as np
import pytest

from medgan_jax.checkpoint import Checkpoints, load_generator
from medgan_jax.data.batches import ResidentBatches
from medgan_jax.errors import UserError
from medgan_jax.memory import memory_needed
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training import loop, program, seeds
from medgan_jax.training.health import probe
from medgan_jax.training.health.monitor import Alarm
from medgan_jax.training.loop import train
from medgan_jax.training.member import Diverged
from medgan_jax.training.program import Program
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.step import METRICS
from medgan_jax.workdir import Workdir, read_lines

RANDOM = {
    "ema_decay": 0.5, "label_flip": 0.3, "data_horizontal_flip": True, "dis_dropout": 0.2, "dis_steps": 2,
    "augment_flips": True, "augment_adaptive_target": 0.6, "augment_adaptive_images": 40, "lecam_weight": 0.1,
}  # fmt: skip


@pytest.fixture
def config(tiny_config, tmp_path):
    return lambda **overrides: tiny_config(data_cache_dir=str(tmp_path / "cache"), **overrides)


def saved_state(workdir, config, step=None):
    checkpoints = Checkpoints(Workdir(workdir).checkpoints, keep=None)
    like = jax.eval_shape(lambda: initial_state(build_networks(config), config))
    return checkpoints.restore(step or checkpoints.latest_step(), like, replicated(data_mesh()))


def log(workdir):
    return [{key: line[key] for key in ("step", "epoch", *METRICS)} for line in read_lines(Workdir(workdir).metrics)]


def assert_same(state, other):
    """To rounding: a step moves a weight by about 2e-4, in a direction that rounding decides where it hardly matters.

    A wrong draw anywhere moves thousands of weights by more.
    """
    leaves = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((s.gen.params, s.dis.params, s.ema_params))])
        for s in (state, other)
    ]
    assert int(state.step) == int(other.step)
    difference = np.abs(leaves[0] - leaves[1])
    assert np.mean(difference > 1e-6) < 1e-3
    assert difference.max() < 1e-3


def test_each_seed_is_its_own_run(config, tmp_path, capsys):
    """Files, figures and weights, with every random draw there is, in one program for both."""
    options = {"num_steps": 10, **RANDOM}
    assert train(config(seed=3, **options), tmp_path / "all", seeds=2) == 0
    one, alone, member = config(seed=4, **options), tmp_path / "alone", tmp_path / "all/seed_4"
    assert train(one, alone) == 0
    assert json.loads(Workdir(member).config.read_text()) == one.to_dict()
    names = [{str(p.relative_to(folder)) for p in folder.rglob("*.png")} for folder in (member, alone)]
    assert names[0] == names[1] != set()
    assert_same(saved_state(member, one), saved_state(alone, one))
    for line, expected in zip(log(member), log(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert Workdir(member).reals.read_bytes() == Workdir(alone).reals.read_bytes()
    assert load_generator(member, replicated(data_mesh())).step == 10
    with pytest.raises(AssertionError):
        assert_same(saved_state(tmp_path / "all/seed_3", one), saved_state(alone, one))
    assert str(member) in capsys.readouterr().out
    assert not Workdir(tmp_path / "all").config.exists()


def test_the_spread_is_that_of_the_last_lines(config, tmp_path, capsys):
    options = {"data_num_phantoms": 100, "data_holdout_fraction": 0.3, "evaluate_every_steps": 4}
    c = config(num_steps=6, **options)
    train(c, tmp_path / "all", seeds=2)
    spread = json.loads((tmp_path / "all/seeds.json").read_text())
    last = [list(read_lines(tmp_path / f"all/seed_{seed}/metrics.jsonl"))[-1] for seed in range(2)]
    assert (spread["seeds"], spread["metrics"]["step"], spread["evaluations"]["step"]) == ([0, 1], 6, 6)
    losses = [line["loss_gen"] for line in last]
    mean = sum(losses) / 2
    assert spread["metrics"]["loss_gen"]["values"] == losses
    assert spread["metrics"]["loss_gen"]["mean"] == pytest.approx(mean)
    deviation = (sum((loss - mean) ** 2 for loss in losses)) ** 0.5
    assert spread["metrics"]["loss_gen"]["std"] == pytest.approx(deviation)
    assert {"swd", "swd_floor", "kid", "kid_floor"} <= set(spread["evaluations"])
    assert f"{mean:.4g} +- {deviation:.2g}" in capsys.readouterr().out
    (tmp_path / "all/seeds.json").unlink()
    train(c, tmp_path / "all", seeds=2)  # a crash came at the very end
    assert json.loads((tmp_path / "all/seeds.json").read_text()) == spread


def test_alone_and_together_again(config, tmp_path):
    train(config(num_steps=4), tmp_path / "parts", seeds=2)
    train(config(num_steps=6, seed=1), tmp_path / "parts/seed_1")
    with pytest.raises(UserError, match=r"seed_1: stands at step 6, and .*seed_0 at step 4; bring that to step 6 by"):
        train(config(num_steps=10), tmp_path / "parts", seeds=2)
    assert int(saved_state(tmp_path / "parts/seed_1", config()).step) == 6
    train(config(num_steps=6), tmp_path / "parts/seed_0")
    train(config(num_steps=10), tmp_path / "parts", seeds=2)
    train(config(num_steps=10, seed=1), tmp_path / "whole")
    states = [saved_state(tmp_path / name, config()) for name in ("parts/seed_1", "whole")]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-3), *states)
    for seed in (0, 1):
        assert [line["step"] for line in log(tmp_path / f"parts/seed_{seed}")] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("saved", [4, 8])
def test_a_crash_between_two_saves_costs_the_steps_since_the_last_common_one(config, tmp_path, capsys, saved):
    c = config(num_steps=saved, keep_checkpoints=1)
    train(c, tmp_path / "run", seeds=2)
    expected = [saved_state(tmp_path / f"run/seed_{seed}", c) for seed in (0, 1)]
    for name in ("checkpoints", "generator", "discriminator"):
        shutil.rmtree(tmp_path / f"run/seed_1/{name}/{saved}")
    capsys.readouterr()
    train(c, tmp_path / "run", seeds=2)
    assert f"all seeds go on from step {saved - 4}, the last" in capsys.readouterr().out
    for seed in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, saved_state(tmp_path / f"run/seed_{seed}", c), expected[seed])
        assert [line["step"] for line in log(tmp_path / f"run/seed_{seed}")] == list(range(2, saved + 1, 2))


def test_new_seeds_do_not_undo_old_ones(config, tmp_path):
    train(config(num_steps=4), tmp_path / "run", seeds=2)
    with pytest.raises(UserError, match="seed_0: stands at step 4, and .*seed_2 at step 0"):
        train(config(num_steps=4), tmp_path / "run", seeds=3)
    assert int(saved_state(tmp_path / "run/seed_0", config()).step) == 4


@pytest.mark.parametrize(
    ("number", "fields", "says"),
    [
        (0, {}, "--seeds=0: must be from 1 to 1000"),
        (-2, {}, "--seeds=-2: must be from 1 to 1000"),
        (10**9, {}, "--seeds=1000000000: must be from 1 to 1000"),
        (2, {"seed": 2**32 - 1}, "from config.seed=4294967295 on they pass 4294967295"),
        (2, {"on_alarm": "stop", "monitor_every_steps": 2}, "none can stop alone; set on_alarm=warn"),
        (2, {"on_alarm": "rollback", "monitor_every_steps": 2}, "none can rollback alone; set on_alarm=warn"),
        (2, {"data_device_budget_mb": 0}, "data.device_budget_mb=0: .* need 1 MiB; raise it to 1"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(config, tmp_path, number, fields, says):
    with pytest.raises(UserError, match=says):
        train(config(**fields), tmp_path / "run", seeds=number)
    assert not (tmp_path / "run").exists()


def test_one_seed_and_several_have_different_workdirs(config, tmp_path):
    train(config(num_steps=1), tmp_path / "one", seeds=1)
    with pytest.raises(UserError, match="one: holds the training of one seed; leave out --seeds"):
        train(config(num_steps=1), tmp_path / "one", seeds=2)
    assert not (tmp_path / "one/seed_0").exists()
    train(config(num_steps=1, seed=7), tmp_path / "two", seeds=2)
    with pytest.raises(UserError, match=r"holds trainings of several seeds; .*two/seed_7 --config.seed=7 with one"):
        train(config(num_steps=1, seed=7), tmp_path / "two")
    assert not Workdir(tmp_path / "two").config.exists()


def test_several_processes_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(seeds.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="several seeds train in one process"):
        seeds.Seeds(config(), tmp_path / "run", 2)
    seeds.Seeds(config(), tmp_path / "run", 1)


@pytest.mark.parametrize(("room_for", "says"), [(2.5, "; 2 would fit"), (0.5, "; not even 1 would fit")])
def test_seeds_that_do_not_fit_are_counted(config, tmp_path, monkeypatch, room_for, says):
    """Where there is room for all but half of a seed, as XLA counts it."""
    c, needed = config(num_steps=1), []
    for numbers in (0, [0, 1, 2, 3]):
        images = np.zeros((12, 16, 16, 3), np.uint8)
        batches = ResidentBatches(images, batch_size=4, seed=numbers, first_step=0, mesh=data_mesh())
        compiled = Program(c, numbers or [0], data_mesh()).compile(*batches.shapes)
        needed.append(memory_needed(compiled))
    one, four = needed
    assert one < four
    room = one + (room_for - 1) * (four - one) / 3 if room_for > 1 else one / 2
    monkeypatch.setattr(seeds, "memory_available", lambda device: int(room))
    with pytest.raises(UserError, match=r"--seeds=4: they need [\d,]+ MiB on each device") as refused:
        train(c, tmp_path / "run", seeds=4)
    assert says in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_one_that_diverges_is_named_and_the_others_keep_their_checkpoints(config, tmp_path, monkeypatch):
    real = program.train_steps

    def exploding(state, images, indices, count, labels, *, seed, **bound):
        state, history = real(state, images, indices, count, labels, seed=seed, **bound)
        steps = np.arange(len(history["loss_gen"])) + state.step - count + 1
        history["loss_gen"] = jax.numpy.where((steps >= 7) & (seed == 1), np.nan, history["loss_gen"])
        return state, history

    monkeypatch.setattr(program, "train_steps", exploding)
    with pytest.raises(Diverged, match=r"training of seed_1 diverged at step 7: loss_gen is nan; the checkpoint of"):
        train(config(), tmp_path / "run", seeds=3)
    for seed in range(3):
        assert int(saved_state(tmp_path / f"run/seed_{seed}", config()).step) == 4
    assert [bool(list(read_lines(tmp_path / f"run/seed_{seed}/alarms.jsonl"))) for seed in range(3)] == [0, 1, 0]


def test_an_alarm_names_its_seed_and_looks_share_a_program(config, tmp_path, monkeypatch, capsys):
    traced, real = [], probe._look
    monkeypatch.setattr(probe, "_look", lambda *args, **kwargs: traced.append(1) or real(*args, **kwargs))

    def take_health(self, line):
        due = line["step"] == 4 and self._config.seed == 1
        return [Alarm("copies", "Copies", 4, 2, "Sentence.", "evidence", ("one", "two"))] if due else []

    monkeypatch.setattr("medgan_jax.training.member.Monitor.take_health", take_health)
    train(config(monitor_every_steps=4), tmp_path / "run", seeds=3)
    out = capsys.readouterr().out
    assert "seed_1: ALARM at step 4, warned: Copies" in out
    assert "alarms:   seed_0: none; seed_1: Copies; seed_2: none" in out
    assert len(traced) == 1
    for seed in range(3):
        assert [line["step"] for line in read_lines(tmp_path / f"run/seed_{seed}/health.jsonl")] == [0, 4, 8]


def test_output_prefixes_are_told_apart(config, tmp_path):
    train(config(num_steps=2, output_prefix=str(tmp_path / "out/run")), tmp_path / "all", seeds=2)
    assert {path.name for path in (tmp_path / "out").glob("*report.out")} == {
        "run_seed_0_metrics_report.out", "run_seed_1_metrics_report.out"
    }  # fmt: skip
    assert (tmp_path / "out/run_seed_1_0_3_img.png").exists()


def test_what_some_steps_leave_out_is_left_out_for_several(config):
    """A branch on the step would become two computations where each seed had a step of its own."""
    c = config(dis_steps=2)
    several = Program(c, [0, 1], data_mesh())
    shape = jax.ShapeDtypeStruct
    compiled = several.compile(shape((12, 16, 16, 3), np.uint8), shape((2, 8, 4), np.int32))
    assert " conditional(" in compiled.as_text()


def test_a_signal_saves_all(config, tmp_path, monkeypatch, capsys):
    real = loop._Training._take_in

    def take_in(self, *args):
        real(self, *args)
        self.signals.caught = 15

    monkeypatch.setattr(loop._Training, "_take_in", take_in)
    assert train(config(num_steps=100), tmp_path / "run", seeds=2) == 128 + 15
    steps = {int(saved_state(tmp_path / f"run/seed_{seed}", config()).step) for seed in (0, 1)}
    assert len(steps) == 1 and f"stopped at step {steps.pop()} of 100, saved" in capsys.readouterr().out
    assert not (tmp_path / "run/seeds.json").exists()
