"""Several seeds: several runs, one after the other, and the spread of their figures."""

import json
import logging

import pytest

from medgan_jax.checkpoint import load_generator
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.callback import Callback, Diverged, Stop
from medgan_jax.training.seeds import train_seeds
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir, read_lines

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_config, tmp_path):
    return lambda **overrides: tiny_config(data_cache_dir=str(tmp_path / "cache"), num_steps=2, **overrides)


def digest(workdir):
    return load_generator(workdir, replicated(data_mesh())).digest


class StopSecond(Callback):
    """Stops the run of seed 4 at its first step."""

    def every(self, config):
        return 1 if config.seed == 4 else 0

    def on_step(self, run, state):
        return Stop() if run.step == 1 else None


def test_each_seed_is_a_run_of_its_own_and_the_summary_is_their_spread(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    c = config(seed=3)
    assert train_seeds(2)(c, tmp_path / "all", callbacks=[StopSecond()]) == 3
    assert not (tmp_path / "all/seeds.json").exists()
    for seed in (3, 4):
        files = Workdir(tmp_path / f"all/seed_{seed}")
        files.append(files.evaluations, {"step": 1, "features": "pixels", "kid": float(seed)})
    assert train_seeds(2)(c, tmp_path / "all") == 0  # goes on with seed 4
    train(config(seed=4), tmp_path / "alone")
    assert digest(tmp_path / "all/seed_4") == digest(tmp_path / "alone") != digest(tmp_path / "all/seed_3")
    summary = json.loads((tmp_path / "all/seeds.json").read_text())
    last = [list(read_lines(tmp_path / f"all/seed_{seed}/metrics.jsonl"))[-1]["loss_gen"] for seed in (3, 4)]
    assert (summary["seeds"], summary["metrics"]["step"]) == ([3, 4], 2)
    kid = {"values": [3, 4], "mean": 3.5, "std": pytest.approx(0.5**0.5)}
    assert summary["evaluations"] == {"step": 1, "features": "pixels", "kid": kid}
    assert summary["metrics"]["loss_gen"] == {
        "values": last,
        "mean": pytest.approx(sum(last) / 2),
        "std": pytest.approx(abs(last[0] - last[1]) / 2**0.5),
    }
    assert f"{sum(last) / 2:.4g} +- " in caplog.text


class DivergeFirst(Callback):
    """Ends the run of seed 0 as diverged."""

    def every(self, config):
        return 0 if config.seed else 1

    def on_step(self, run, state):
        raise Diverged("loss_gen is nan")


def test_a_diverged_seed_does_not_keep_the_others_from_training(config, tmp_path):
    with pytest.raises(UserError, match="seed_0: loss_gen is nan"):
        train_seeds(2)(config(), tmp_path / "all", callbacks=[DivergeFirst()])
    assert json.loads((tmp_path / "all/seeds.json").read_text())["seeds"] == [1]


def test_runs_of_one_seed_and_of_several_have_different_workdirs(config, tmp_path):
    train(config(), tmp_path / "one")
    with pytest.raises(UserError, match="one: holds the run of one seed; leave out --seeds"):
        train_seeds(2)(config(), tmp_path / "one")
    (tmp_path / "several/seed_7").mkdir(parents=True)
    (tmp_path / "several/seed_7/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds runs of several seeds; .*several/seed_7 with one"):
        train(config(), tmp_path / "several")
    assert not Workdir(tmp_path / "several").config.exists()
    with pytest.raises(UserError, match="from config.seed=4294967295 on they pass 4294967295"):
        train_seeds(2)(config(seed=2**32 - 1), tmp_path / "last")
