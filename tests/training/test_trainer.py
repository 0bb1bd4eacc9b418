"""A run as a whole: its files, resuming to the bit, callbacks that stop it or roll it back, and what is refused."""

import json
import logging
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import medgan_jax
from medgan_jax.checkpoint import Checkpoints, load_generator
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.callback import Callback, RollBack, Stop
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.step import METRICS
from medgan_jax.training.trainer import STOPPED_BY_CALLBACK, train
from medgan_jax.workdir import Workdir, read_lines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory):
    """Of 21 training images, 23 held out; equal networks and options share their compiled steps."""
    fields = {"data_num_phantoms": 44, "data_holdout_fraction": 0.5}
    fields |= {"data_cache_dir": str(tmp_path_factory.getbasetemp() / "cache")}
    return lambda **overrides: tiny_config(**fields | overrides)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The last state of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(config(), workdir)
    return final_state(workdir, config())


class At(Callback):
    """Does `what(run, state)` at one step, once."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def every(self, config):
        return self.step

    def on_step(self, run, state):
        if self.what and run.step == self.step:
            what, self.what = self.what, None
            return what(run, state)
        return None


def final_state(workdir, config, num_classes=0):
    checkpoints = Checkpoints(Workdir(workdir).checkpoints, keep=None)
    like = jax.eval_shape(lambda: initial_state(build_networks(config, num_classes), config))
    return checkpoints.restore(checkpoints.latest_step(), like, replicated(data_mesh()))


def assert_same(*states):
    jax.tree.map(np.testing.assert_array_equal, *states)


def metrics(workdir):
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_lines(Workdir(workdir).metrics)]


def generator_of(path):
    return load_generator(path, replicated(data_mesh()))


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_its_files(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    c = config(num_steps=9, keep_checkpoints=2)
    assert train(c, tmp_path / "run") == 0
    files = Workdir(tmp_path / "run")
    assert json.loads(files.config.read_text()) == c.to_dict()
    described = json.loads(files.dataset.read_text())
    assert described["num_images"] == 21 == sum(described["labels"].values())
    lines = list(read_lines(files.metrics))
    assert [(line["step"], line["epoch"]) for line in lines] == [(2, 0), (4, 0), (6, 1), (8, 1), (9, 1)]
    assert all(tuple(line) == ("step", "epoch", *METRICS, "images_per_s") for line in lines)
    assert all(0 < line[key] < 1 for line in lines for key in METRICS if key.startswith("score"))
    assert {path.name for path in files.samples.iterdir()} == {
        "reals.png", *(f"step_{step:08d}.png" for step in (0, 4, 8, 9))
    }  # fmt: skip
    assert picture(files.picture(9)).shape == picture(files.reals).shape == (38, 38, 3)  # 2 x 2 images of 16 px
    assert sorted(int(path.name) for path in files.checkpoints.iterdir() if path.name.isdigit()) == [8, 9]
    generator, state = generator_of(files.path), final_state(files.path, c)
    assert (generator.step, int(state.step)) == (9, 9)
    assert_same(generator.variables["params"], state.gen.params)
    assert str(files.picture(9)) in caplog.text

    before = contents(files.path)
    assert train(c, files.path) == 0
    assert "already at step 9 of 9" in caplog.text
    assert contents(files.path) == before


def test_resuming_is_exact(config, tmp_path, caplog):
    """In one go, and in three, stopped between two intervals, and first with other intervals.

    With every option, of grey images, in bfloat16, in which no parameter is kept.
    """
    caplog.set_level(logging.INFO)
    options = {"conditional": True, "channels": 1, "dtype": "bfloat16", "upsample": "bilinear"}
    options |= {"ema_decay": 0.5, "ema_rampup": 0.3, "label_flip": 0.3, "data_horizontal_flip": True, "dis_steps": 2}
    options |= {"augment_color": 1.0, "augment_adaptive_target": 0.01, "augment_adaptive_images": 100}
    options |= {"lecam_weight": 0.3, "r1_weight": 1.0, "r1_every_steps": 5, "dis_dropout": 0.1}
    whole = config(num_steps=12, **options)
    train(whole, tmp_path / "whole")
    assert "classes: benign " in caplog.text
    assert generator_of(tmp_path / "whole").classes == ("benign", "malignant")
    train(config(num_steps=3, log_every_steps=5, checkpoint_every_steps=7, **options), tmp_path / "parts")
    for num_steps in (7, 12):
        train(config(num_steps=num_steps, **options), tmp_path / "parts")
    state = final_state(tmp_path / "parts", whole, num_classes=2)
    assert_same(state, final_state(tmp_path / "whole", whole, num_classes=2))
    assert_same(state.ema_params, generator_of(tmp_path / "whole").variables["params"])
    later = [line for line in metrics(tmp_path / "parts") if line["step"] > 3 and line["step"] % 2 == 0]
    assert later == metrics(tmp_path / "whole")[1:]
    assert all(np.isfinite(value) for line in later for value in line.values())
    ours, theirs = (picture(Workdir(tmp_path / name).picture(12)) for name in ("parts", "whole"))
    assert ours.ndim == 2 and np.array_equal(ours, theirs)
    kept = state.gen.params, state.dis.params, state.gen.stats, state.dis.stats
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float32")}


class Averages:
    """Stands in for EfficientNet-Lite0, which takes long: of each square of a stride, sines of its mean."""

    def __init__(self, variant):
        pass

    def apply(self, variables, images):
        n, h, w, _ = images.shape
        means = [images.reshape(n, h // s, s, w // s, s, -1).mean((2, 4, 5)) for s in (4, 8, 16, 32)]
        factors = [np.arange(1, 1 + width, dtype=np.float32)[None] for width in (24, 40, 112, 320)]
        return SimpleNamespace(taps=[jnp.sin(x[..., None] @ y) for x, y in zip(means, factors, strict=True)])


def test_a_projected_run_resumes_exactly_and_names_what_is_frozen(config, tmp_path, monkeypatch):
    """Grey, conditional, in bfloat16: a frozen network is in no checkpoint, and another one is refused."""
    monkeypatch.setattr("medgan_jax.models.projected.EfficientNetLite", Averages)
    monkeypatch.setattr("medgan_jax.ops.winograd.LOWERING", "native")  # the smallest programs
    options = {"arch": "fastgan", "image_size": 32, "dis": "projected", "loss": "hinge", "gen_features": 1}
    options |= {"channels": 1, "conditional": True, "dtype": "bfloat16", "ema_decay": 0.9, "augment_flips": True}
    options |= {"dis_features": 64, "checkpoint_every_steps": 1, "batch_size": 2, "num_steps": 2}
    train(config(**options), tmp_path / "run")
    expected = final_state(tmp_path / "run", config(**options), num_classes=2)
    for network in (expected.gen, expected.dis):
        moments = traverse_util.flatten_dict(network.opt_state.inner_state[0].nu, sep="/")
        assert not [name for name, moment in moments.items() if not np.any(moment)]  # all had a gradient

    for lost in ("checkpoints/2", "generator", "discriminator"):  # as if it had been killed in its second step
        shutil.rmtree(tmp_path / "run" / lost)
    train(config(**options), tmp_path / "run")
    assert_same(final_state(tmp_path / "run", config(**options), num_classes=2), expected)
    assert generator_of(tmp_path / "run").module.image_size == 32
    shutil.copytree(tmp_path / "run/generator", tmp_path / "alone")
    with monkeypatch.context() as without:  # the folder alone is sampled from without the pretrained weights
        for module in ("checkpoint", "models.projected"):
            without.setattr(f"medgan_jax.{module}.load_frozen", None)
        assert medgan_jax.load(tmp_path / "alone").sample(3, seed=0).shape == (3, 32, 32, 1)

    saved = Workdir(tmp_path / "run").checkpoints
    assert sum(file.stat().st_size for file in saved.rglob("*") if file.is_file()) < 2 * 18e6  # Lite0 takes 18 MB
    (about,) = (saved / "2/about").glob("metadata")
    assert "efficientnet-lite0, " in about.read_text()
    about.write_text(about.read_text().replace("efficientnet-lite0, ", "efficientnet-lite0, other "))
    with pytest.raises(
        UserError, match="step 2 was trained with the frozen network efficientnet-lite0, other .*install"
    ):
        train(config(**options | {"num_steps": 3}), tmp_path / "run")
    (about,) = (tmp_path / "run/discriminator").glob("*/about/metadata")
    about.write_text(about.read_text().replace("efficientnet-lite0, ", "efficientnet-lite0, other "))
    with pytest.raises(UserError, match="discriminator: step 2 was trained with the frozen network .*, other "):
        train(config(**options, init_from=str(tmp_path / "run")), tmp_path / "tuned")


class StopAtMetrics(Callback):
    """Stops as soon as it sees metrics."""

    def on_metrics(self, run, step, metrics):
        return Stop()


@pytest.mark.parametrize("end", ["error", "SIGTERM"])
def test_what_was_trained_is_saved_when_a_run_ends_early(config, whole, tmp_path, caplog, end):
    caplog.set_level(logging.INFO)

    def fail(run, state):
        raise ValueError("a fault of the callback")

    def terminate(run, state):
        os.kill(os.getpid(), signal.Signals[end])

    if end == "error":  # right after the checkpoint of step 4, which is on its way to the disk
        with pytest.raises(ValueError, match="a fault of the callback"):
            train(config(), tmp_path / "run", callbacks=[At(5, fail)])
    else:
        assert train(config(), tmp_path / "run", callbacks=[At(5, terminate)]) == 128 + signal.Signals[end]
        assert "stopped at step 5 of 8, saved" in caplog.text
    step = 4 if end == "error" else 5
    assert int(final_state(tmp_path / "run", config()).step) == generator_of(tmp_path / "run").step == step
    train(config(), tmp_path / "run")
    assert_same(final_state(tmp_path / "run", config()), whole)


def test_a_callback_stops_a_run_and_a_signal_that_is_ignored_does_not(config, tmp_path, caplog):
    """Such as SIGHUP under nohup."""
    caplog.set_level(logging.INFO)
    seen = []
    keep = At(3, lambda run, state: seen.extend(jax.tree.leaves(state.gen.params)))
    hang_up = At(4, lambda run, state: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code = train(config(), tmp_path / "run", callbacks=[keep, hang_up, At(6, lambda run, state: Stop())])
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code == STOPPED_BY_CALLBACK == 3
    assert "stopped by a callback at step 6" in caplog.text
    assert int(final_state(tmp_path / "run", config()).step) == 6
    # Each step updates the state in place: a second copy would cost as much memory as parameters and moments do.
    assert seen and all(leaf.is_deleted() for leaf in seen)


def test_a_stop_while_steps_are_computed_loses_no_line_of_the_log(config, whole, tmp_path):
    c = config(log_every_steps=1)
    assert train(c, tmp_path / "run", callbacks=[StopAtMetrics()]) == STOPPED_BY_CALLBACK
    assert 0 < int(final_state(tmp_path / "run", c).step) < 8
    train(c, tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 9))
    assert_same(final_state(tmp_path / "run", c), whole)


def test_a_rollback_goes_on_from_a_checkpoint_with_other_learning_rates(config, tmp_path):
    """As a run that got them when it stood there; also resumed after that."""
    c = config(num_steps=11)
    rates = {"lr_gen": c.lr_gen, "lr_dis": c.lr_dis / 4}
    train(c, tmp_path / "back", callbacks=[At(7, lambda run, state: RollBack(6, rates))])
    train(config(num_steps=5), tmp_path / "there", callbacks=[At(4, lambda run, state: RollBack(4, rates))])
    train(c, tmp_path / "there")
    states = [final_state(tmp_path / name, c) for name in ("back", "there")]
    assert_same(*states)
    assert float(states[0].dis.opt_state.hyperparams["learning_rate"]) == pytest.approx(rates["lr_dis"])
    (line,) = read_lines(Workdir(tmp_path / "back").rollbacks)
    assert line == {"step": 7, "to_step": 4, "alarm": "", **rates}
    for name in ("metrics", "health"):
        steps = [entry["step"] for entry in read_lines(getattr(Workdir(tmp_path / "back"), name))]
        assert steps == sorted(set(steps))
    assert list(Workdir(tmp_path / "back").pictures()) == [0, 4, 8, 11]


def test_divergence_rolls_back_as_often_as_it_may_and_is_never_saved(config, tmp_path):
    """To the start, as there is no checkpoint."""
    c = config(lr_gen=1e38, lr_dis=1e38, monitor_every_steps=9, on_alarm="rollback", max_rollbacks=1)
    with pytest.raises(UserError, match=r"diverged at step .*; no checkpoint was written yet. In a new workdir, lower"):
        train(c, tmp_path / "run")
    files = Workdir(tmp_path / "run")
    (back,) = read_lines(files.rollbacks)
    assert (back["to_step"], back["lr_dis"], back["lr_gen"]) == (0, pytest.approx(5e37), 1e38)
    assert [line["action"].split()[0] for line in read_lines(files.alarms)] == ["rolled", "stopped"]
    assert {line["alarm"] for line in read_lines(files.alarms)} == {"divergence"}
    assert Checkpoints(files.checkpoints, keep=None).latest_step() is None


def test_an_alarm_warns_or_stops(config, whole, tmp_path, caplog):
    """The fakes of an untrained generator are nearly the same."""
    caplog.set_level(logging.INFO)
    options = {"monitor_every_steps": 1, "alarm_patience": 1}
    assert train(config(**options), tmp_path / "warned") == 0
    files = Workdir(tmp_path / "warned")
    assert [line["step"] for line in read_lines(files.health)] == list(range(9))
    alarm = next(read_lines(files.alarms))
    assert (alarm["alarm"], alarm["action"]) == ("mode_collapse", "warned")
    out = caplog.text
    assert f"ALARM at step {alarm['step']}, warned: Mode collapse." in out
    assert "alarms:   Mode collapse" in out
    c = config(on_alarm="stop", **options)
    assert train(c, tmp_path / "stopped") == STOPPED_BY_CALLBACK
    assert int(final_state(tmp_path / "stopped", c).step) == alarm["step"]
    assert train(c, tmp_path / "stopped") == 0  # it is not raised again
    assert_same(final_state(tmp_path / "stopped", c), whole)


def test_the_best_generator_is_kept_and_evaluation_changes_nothing(config, whole, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    c = config(evaluate_every_steps=5)
    train(c, tmp_path / "run")
    lines = list(read_lines(Workdir(tmp_path / "run").evaluations))
    assert [line["step"] for line in lines] == [5, 8]
    assert all(0 < line["swd_reals"] < line["swd"] for line in lines)  # eight steps teach little
    assert {line["features"] for line in lines} == {"efficientnet-lite1"}
    version = "weights efficientnet-lite1-77cc7160; not comparable with published FIDs"
    assert all(line["features_description"].endswith(version) for line in lines)
    best = min(lines, key=lambda line: line["kid"])["step"]
    kept = generator_of(Workdir(tmp_path / "run").best)
    assert (kept.step, kept.about["best_by"]) == (best, "kid")
    assert f"best by kid: of step {best}, in {Workdir(tmp_path / 'run').best}" in caplog.text
    for num_steps in (5, 8):  # resumed, by another measure
        train(config(num_steps=num_steps, evaluate_every_steps=5, best_measure="swd"), tmp_path / "parts")
    parts = {line["step"]: line for line in read_lines(Workdir(tmp_path / "parts").evaluations)}
    assert all(parts[line["step"]] | {"best_by": "kid"} == line for line in lines)
    assert generator_of(Workdir(tmp_path / "parts").best).step == min(parts, key=lambda step: parts[step]["swd"])
    for name in ("run", "parts"):
        assert_same(final_state(tmp_path / name, c), whole)


def test_a_crash_between_state_and_networks_is_mended(config, tmp_path):
    train(config(), tmp_path / "run")
    expected = generator_of(tmp_path / "run").digest
    shutil.rmtree(tmp_path / "run/generator")
    train(config(), tmp_path / "run")
    assert generator_of(tmp_path / "run").digest == expected
    shutil.rmtree(tmp_path / "run/checkpoints")  # a generator alone cannot be resumed from, and is not overwritten
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        train(config(num_steps=20), tmp_path / "run")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"batch_size": 22}, "batch_size=22 is more than the 21 images"),
        (
            {"evaluate_every_steps": 3, "data_holdout_fraction": 0.4},
            "needs 20 images or more, and 1. are held out; raise data.holdout",
        ),
        ({"data_num_phantoms": 2, "conditional": True, "batch_size": 2}, "conditional=True learns several classes"),
        ({"init_from": "nowhere"}, "init_from=nowhere: no such folder or file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(config, tmp_path, fields, says):
    with pytest.raises(UserError, match=says):
        train(config(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
