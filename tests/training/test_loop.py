"""A training as a whole: its files, resuming, and trainings that must stop."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from medgan_jax.checkpoint import Checkpoints, load_generator
from medgan_jax.data import batches as batches_module
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training import loop, member, program
from medgan_jax.training.health.monitor import Alarm
from medgan_jax.training.loop import train
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.step import METRICS, train_step
from medgan_jax.workdir import Workdir, read_lines


@pytest.fixture
def config(tiny_config, tmp_path):
    return lambda **overrides: tiny_config(data_cache_dir=str(tmp_path / "cache"), **overrides)


def final_state(workdir, config, num_classes=0):
    checkpoints = Checkpoints(Workdir(workdir).checkpoints, keep=None)
    like = jax.eval_shape(lambda: initial_state(build_networks(config, num_classes), config))
    return checkpoints.restore(checkpoints.latest_step(), like, replicated(data_mesh()))


def log(workdir):
    lines = [json.loads(line) for line in Workdir(workdir).metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_training_leaves_what_it_says(config, tmp_path, capsys):
    c = config(ema_decay=0.5, num_steps=9, keep_checkpoints=2)
    assert train(c, tmp_path / "run") == 0
    files = Workdir(tmp_path / "run")
    assert json.loads(files.config.read_text()) == c.to_dict()
    described = json.loads(files.dataset.read_text())
    assert described["num_images"] == 12 == sum(described["labels"].values())
    lines = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9]
    assert [line["epoch"] for line in lines] == [0, 1, 1, 2, 2]  # 12 images, batches of 4
    assert all(tuple(line) == ("step", "epoch", *METRICS, "images_per_s") for line in lines)
    assert all(0 < line[key] < 1 for line in lines for key in METRICS if key.startswith("score"))
    assert sorted(path.name for path in files.samples.iterdir()) == ["reals.png"] + [
        f"step_{step:08d}.png" for step in (0, 4, 8, 9)
    ]
    assert picture(files.picture(9)).shape == picture(files.reals).shape == (38, 38, 3)  # 2 x 2 images of 16 px
    assert sorted(int(p.name) for p in files.checkpoints.iterdir() if p.name.isdigit()) == [8, 9]
    generator = load_generator(files.path, replicated(data_mesh()))
    state = final_state(files.path, c)
    assert (generator.step, int(state.step)) == (9, 9)
    jax.tree.map(np.testing.assert_array_equal, generator.variables["params"], state.ema_params)
    assert str(files.picture(9)) in capsys.readouterr().out


def test_stopping_and_going_on_changes_not_a_bit(config, tmp_path):
    """In one go, and in three, cut where no interval ends; also logged, pictured and saved at other times."""
    options = {"ema_decay": 0.5, "ema_rampup": 0.3, "label_flip": 0.3, "data_horizontal_flip": True}
    options |= {"augment_color": 1.0, "augment_adaptive_target": 0.01, "augment_adaptive_images": 100}
    options |= {"lecam_weight": 0.3, "r1_weight": 1.0, "r1_every_steps": 5}
    whole = config(num_steps=12, **options)
    train(whole, tmp_path / "whole")
    for num_steps in (3, 7, 12):
        train(config(num_steps=num_steps, **options), tmp_path / "parts")
    train(config(num_steps=12, log_every_steps=5, checkpoint_every_steps=7, **options), tmp_path / "other")
    expected = final_state(tmp_path / "whole", whole)
    for name in ("parts", "other"):
        jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / name, whole), expected)
    lines = {line["step"]: line for line in log(tmp_path / "whole")}
    assert [line for line in log(tmp_path / "parts") if line["step"] % 2 == 0] == list(lines.values())
    assert Workdir(tmp_path / "whole").picture(12).read_bytes() == Workdir(tmp_path / "parts").picture(12).read_bytes()


def test_streaming_changes_not_a_bit(config, tmp_path, monkeypatch):
    """Chunks of 5 steps, and a resume within one; the memory kept on the devices may change between."""
    options = {"ema_decay": 0.5, "label_flip": 0.3, "data_horizontal_flip": True}
    whole = config(num_steps=12, **options)
    train(whole, tmp_path / "resident")
    monkeypatch.setattr(batches_module, "_CHUNK_BYTES", 5 * 4 * 16 * 16 * 3)
    train(config(num_steps=7, data_device_budget_mb=0, **options), tmp_path / "streamed")
    train(config(num_steps=12, data_device_budget_mb=0, **options), tmp_path / "streamed")
    expected = final_state(tmp_path / "resident", whole)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "streamed", whole), expected)


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_an_error_leaves_what_was_being_saved(config, tmp_path, monkeypatch, ema_decay):
    """Right after a checkpoint, while it and its generator are on their way to the disk."""
    real = batches_module.ResidentBatches.take

    def take(self, count, after=None):
        if self._step == 4:
            raise UserError("the disk is gone")
        return real(self, count, after)

    monkeypatch.setattr(batches_module.ResidentBatches, "take", take)
    c = config(ema_decay=ema_decay)
    with pytest.raises(UserError, match="the disk is gone"):
        train(c, tmp_path / "run")
    assert int(final_state(tmp_path / "run", c).step) == 4
    assert load_generator(tmp_path / "run", replicated(data_mesh())).step == 4


def test_a_finished_training_is_left_alone(config, tmp_path, capsys):
    train(config(), tmp_path / "run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train(config(), tmp_path / "run") == 0
    assert "already at step 8 of 8" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files


def test_a_step_updates_the_state_in_place(config, tmp_path, monkeypatch):
    """A second copy would cost as much memory as parameters and moments do."""
    programs, compiled = [], program.compiled
    monkeypatch.setattr(program, "compiled", lambda *shapes: programs.append(compiled(*shapes)) or programs[-1])
    train(config(), tmp_path / "run")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(final_state(tmp_path / "run", config())))
    assert programs[-1].memory_analysis().alias_size_in_bytes >= size


def test_grey_images_in_bfloat16_train_and_parameters_stay_float32(config, tmp_path):
    """With all that may go with them on small data sets."""
    penalties = {"r1_weight": 1.0, "lecam_weight": 0.3, "consistency_weight": 1.0}
    c = config(dtype="bfloat16", channels=1, num_steps=2, upsample="bilinear", augment_color=1.0, **penalties)
    train(c, tmp_path / "run")
    assert np.isfinite(log(tmp_path / "run")[-1]["loss_gen"])
    assert picture(Workdir(tmp_path / "run").picture(2)).ndim == 2
    networks = build_networks(c)
    images = jax.ShapeDtypeStruct((4, 16, 16, 1), np.uint8)
    step = functools.partial(train_step, networks=networks, config=c)
    state, _ = jax.eval_shape(step, jax.eval_shape(lambda: initial_state(networks, c)), images)
    kept = state.gen.params, state.dis.params, state.gen.stats, state.dis.stats
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float32")}


def test_divergence_stops_at_its_step_and_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    real = program.train_steps

    def exploding(state, *args, **kwargs):
        state, history = real(state, *args, **kwargs)
        steps = np.arange(len(history["loss_gen"])) + state.step - args[2] + 1
        history["loss_gen"] = jax.numpy.where(steps >= 7, np.nan, history["loss_gen"])
        return state, history

    monkeypatch.setattr(program, "train_steps", exploding)
    with pytest.raises(UserError, match=r"diverged at step 7: loss_gen is nan; the checkpoint of step 4 is kept"):
        train(config(), tmp_path / "run")
    assert int(final_state(tmp_path / "run", config()).step) == 4
    assert [line["step"] for line in log(tmp_path / "run")] == [2, 4, 6]


def raises_alarms(monkeypatch, *steps, since):
    """A monitor that raises an alarm at these steps, whatever it sees; the lines of metrics that it was given."""
    seen = []

    def take_health(self, line):
        due = line["step"] in steps
        return [Alarm("copies", "Copies", line["step"], since, "Sentence.", "evidence", ("one", "two"))] if due else []

    monkeypatch.setattr(member.Monitor, "take_health", take_health)
    monkeypatch.setattr(member.Monitor, "take_metrics", lambda self, line: seen.append(line["step"]))
    return seen


def lines(path):
    return list(read_lines(path))


def test_an_alarm_warns_and_the_training_goes_on(config, tmp_path, monkeypatch, capsys):
    seen = raises_alarms(monkeypatch, 6, since=2)
    assert train(config(monitor_every_steps=3), tmp_path / "run") == 0
    files = Workdir(tmp_path / "run")
    assert [line["step"] for line in lines(files.health)] == [0, 3, 6, 8]
    (alarm,) = lines(files.alarms)
    assert (alarm["step"], alarm["since"], alarm["alarm"], alarm["action"]) == (6, 2, "copies", "warned")
    assert alarm["remedies"] == ["one", "two"]
    assert seen == [2, 4, 6, 8]
    out = capsys.readouterr().out
    assert "ALARM at step 6, warned: Copies. Sentence. Evidence: evidence. Try one; or two" in out
    assert "alarms:   Copies" in out


def test_an_alarm_stops_a_training_which_can_go_on(config, tmp_path, monkeypatch, capsys):
    """To the same end as one that was never looked at."""
    raises_alarms(monkeypatch, 6, 8, since=2)
    c = config(monitor_every_steps=3, on_alarm="stop")
    assert train(c, tmp_path / "run") == loop.STOPPED_BY_ALARM == 3
    assert int(final_state(tmp_path / "run", c).step) == 6
    assert lines(Workdir(tmp_path / "run").alarms)[0]["action"] == "stopped"
    assert "stopped by an alarm at step 6" in capsys.readouterr().out
    assert train(c, tmp_path / "run") == 0  # at the end there is nothing to stop
    assert [line["action"] for line in lines(Workdir(tmp_path / "run").alarms)] == ["stopped", "warned"]
    assert ["drift" in line for line in lines(Workdir(tmp_path / "run").health)] == [False, True, True, True]
    train(config(), tmp_path / "whole")
    jax.tree.map(
        np.testing.assert_array_equal, final_state(tmp_path / "run", c), final_state(tmp_path / "whole", config())
    )


def test_rolling_back_goes_on_from_the_last_healthy_checkpoint_with_a_slower_discriminator(
    config, tmp_path, monkeypatch
):
    """Against the two halves by hand; also where it is stopped after that, and started again."""
    raises_alarms(monkeypatch, 9, since=6)
    c = config(monitor_every_steps=9, on_alarm="rollback", rollback_factor=0.25, max_rollbacks=1, num_steps=13)
    train(config(num_steps=4), tmp_path / "run")
    slower = config(num_steps=13, lr_dis=c.lr_dis / 4)
    shutil.copytree(tmp_path / "run", tmp_path / "by_hand")
    (tmp_path / "by_hand/config.json").write_text(json.dumps(slower.to_dict()))
    train(slower, tmp_path / "by_hand")

    assert train(c, tmp_path / "run") == 0
    files = Workdir(tmp_path / "run")
    expected = final_state(tmp_path / "by_hand", slower)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "run", c), expected)
    rates = {"lr_gen": c.lr_gen, "lr_dis": c.lr_dis / 4}
    assert lines(files.rollbacks) == [{"step": 9, "to_step": 4, "alarm": "copies", **rates}]
    first, second = lines(files.alarms)  # of step 9, twice: no rollback is left for the second
    assert (first["action"], first["rolled_back_to"]) == ("rolled back to step 4, lr_dis=5e-05", 4)
    assert second["action"] == "warned"
    assert [(line["step"], "drift" in line) for line in lines(files.health)] == [(9, False), (13, True)]
    assert [line["step"] for line in lines(files.metrics)] == [2, 4, 6, 8, 10, 12, 13]
    assert list(files.pictures()) == [0, 4, 8, 12, 13]
    jax.tree.map(np.testing.assert_array_equal, log(tmp_path / "run"), log(tmp_path / "by_hand"))
    generator = load_generator(tmp_path / "run", replicated(data_mesh()))
    assert generator.digest == load_generator(tmp_path / "by_hand", replicated(data_mesh())).digest

    longer = {"num_steps": 15}
    train(config(**{**longer, "lr_dis": c.lr_dis / 4}), tmp_path / "by_hand")
    train(config(monitor_every_steps=0, **longer), tmp_path / "run")  # its rate is still the lower one
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(tmp_path / "run", c),
        final_state(tmp_path / "by_hand", slower),
    )


def test_divergence_rolls_back_as_often_as_it_may(config, tmp_path):
    """To the start, as there is no checkpoint."""
    c = config(arch="dcgan", lr_gen=1e38, lr_dis=1e38, monitor_every_steps=9, on_alarm="rollback", max_rollbacks=1)
    with pytest.raises(UserError, match="diverged at step"):
        train(c, tmp_path / "run")
    files = Workdir(tmp_path / "run")
    (back,) = lines(files.rollbacks)
    assert (back["to_step"], back["lr_dis"], back["lr_gen"]) == (0, pytest.approx(5e37), 1e38)
    assert [line["alarm"] for line in lines(files.alarms)] == ["divergence"] * 2
    assert [line["action"].split()[0] for line in lines(files.alarms)] == ["rolled", "stopped"]
    assert [line["step"] for line in lines(files.health)] == [0]
    assert list(files.pictures()) == [0] and files.reals.exists()


def test_parameters_that_are_not_finite_are_never_saved(config, tmp_path):
    with pytest.raises(UserError, match="diverged at step"):
        train(config(arch="dcgan", lr_gen=1e38, lr_dis=1e38), tmp_path / "run")
    assert Checkpoints(Workdir(tmp_path / "run").checkpoints, keep=None).latest_step() is None


def test_a_crash_between_state_and_generator_is_mended(config, tmp_path):
    train(config(), tmp_path / "run")
    expected = load_generator(tmp_path / "run", replicated(data_mesh())).digest
    shutil.rmtree(tmp_path / "run/generator")
    train(config(), tmp_path / "run")
    assert load_generator(tmp_path / "run", replicated(data_mesh())).digest == expected


def test_lost_checkpoints_do_not_cost_the_results(config, tmp_path):
    train(config(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        train(config(num_steps=20), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_too_large_a_batch_writes_nothing(config, tmp_path):
    with pytest.raises(UserError, match="batch_size=14 is more than the 12 images"):
        train(config(batch_size=14), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def evaluated(**options):
    return {"data_num_phantoms": 100, "data_holdout_fraction": 0.3, "evaluate_every_steps": 3, **options}


def evaluations(workdir):
    return [json.loads(line) for line in Workdir(workdir).evaluations.read_text().splitlines()]


def test_the_best_generator_is_kept(config, tmp_path, capsys):
    c = config(num_steps=11, **evaluated())
    train(c, tmp_path / "run")
    lines = evaluations(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 6, 9, 11]
    assert all(0 < line["swd_floor"] < line["swd"] for line in lines)  # eleven steps teach little
    assert {line["kid_floor"] for line in lines} == {lines[0]["kid_floor"]}
    best = min(lines, key=lambda line: line["swd"])
    kept = load_generator(Workdir(tmp_path / "run").best, replicated(data_mesh()))
    assert kept.step == best["step"]
    assert kept.about["best_by"] == "swd"
    train(config(num_steps=12, **evaluated(best_measure="kid")), tmp_path / "run")
    assert load_generator(Workdir(tmp_path / "run").best, replicated(data_mesh())).step == 12  # chosen anew
    assert f"best by swd: of step {best['step']}, in {Workdir(tmp_path / 'run').best}" in capsys.readouterr().out


def test_evaluation_and_resuming_change_not_a_bit(config, tmp_path):
    """Neither of the training nor of the figures, which are those of the generator's own samples."""
    whole = config(num_steps=9, **evaluated())
    train(whole, tmp_path / "whole")
    for num_steps in (5, 9):
        train(config(num_steps=num_steps, **evaluated(best_measure="kid")), tmp_path / "parts")
    train(config(num_steps=9, **evaluated(evaluate_every_steps=0)), tmp_path / "never")
    expected = final_state(tmp_path / "whole", whole)
    for name in ("parts", "never"):
        jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / name, whole), expected)
    figures = {line["step"]: line for line in evaluations(tmp_path / "whole")}
    parts = {line["step"]: line for line in evaluations(tmp_path / "parts")}
    assert set(parts) == {3, 5, 6, 9}
    assert all(parts[step] | {"best_by": "swd"} == figures[step] for step in (3, 6, 9))
    assert not Workdir(tmp_path / "never").evaluations.exists()
    best = min(parts.values(), key=lambda line: line["kid"])["step"]
    assert load_generator(Workdir(tmp_path / "parts").best, replicated(data_mesh())).step == best


def test_too_few_held_out_images_are_refused(config, tmp_path):
    with pytest.raises(UserError, match="needs 20 images or more, and 1. are held out; raise data.holdout_fraction"):
        train(config(**evaluated(data_holdout_fraction=0.15)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def conditional(**options):
    """Of phantoms, of which nearly one in four is malignant."""
    return {"conditional": True, "data_num_phantoms": 60, "data_holdout_fraction": 0.4, "ema_decay": 0.5, **options}


def fed(monkeypatch):
    """What trainings give to their programs: images and classes of each step (N, H, W, C) and (N,), by step."""
    seen, real = {}, program.Program.run

    def run(self, state, images, indices, count, labels):
        for k in range(count):
            seen[int(state.step) + k] = np.asarray(images[indices[k]]), None if labels is None else labels[k].copy()
        return real(self, state, images, indices, count, labels)

    monkeypatch.setattr(program.Program, "run", run)
    return seen


def test_each_batch_of_a_conditional_training_has_all_classes(config, tmp_path, monkeypatch, capsys):
    seen = fed(monkeypatch)
    drawn, sample_batches = {}, member.sample_batches

    def noted(*args, labels_of, **kwargs):
        drawn[args[3]] = labels_of(np.arange(args[3]))
        return sample_batches(*args, labels_of=labels_of, **kwargs)

    monkeypatch.setattr(member, "sample_batches", noted)
    c = config(num_steps=6, monitor_every_steps=3, **conditional(evaluate_every_steps=3))
    train(c, tmp_path / "run")
    dataset, _ = batches_module.load_dataset(c.data, image_size=16, channels=3)
    names = sorted(set(dataset.labels))
    of_image = {
        image.tobytes(): names.index(label) for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    for images, labels in seen.values():
        assert [of_image[image.tobytes()] for image in images] == labels.tolist()
        assert np.bincount(labels).tolist() == [2, 2]
    assert sorted(seen) == list(range(6))
    counts = {name: dataset.labels.count(name) for name in names}
    assert sorted(drawn) == sorted([c.num_sample_images, member.FAKES, len(dataset.images)])
    assert np.bincount(drawn.pop(len(dataset.images))).tolist() == list(counts.values())  # to be judged by reals
    assert all(labels.tolist() == [i % 2 for i in range(number)] for number, labels in drawn.items())
    assert f"classes: {', '.join(f'{name} {count}' for name, count in counts.items())}; " in capsys.readouterr().out
    generator = load_generator(tmp_path / "run", replicated(data_mesh()))
    assert generator.classes == tuple(names) == ("benign", "malignant")
    assert load_generator(Workdir(tmp_path / "run").best, replicated(data_mesh())).classes == generator.classes
    reals = picture(Workdir(tmp_path / "run").reals)  # 2 x 2 images of 16 px, apart by 2
    tiles = [reals[y : y + 16, x : x + 16] for y in (2, 20) for x in (2, 20)]
    assert [of_image[tile.tobytes()] for tile in tiles] == [0, 1, 0, 1]


def test_classes_may_come_as_often_as_they_are(config, tmp_path, monkeypatch):
    """Then the order is that of a training which is not conditional."""
    seen = fed(monkeypatch)
    options = conditional(num_steps=4, balance_classes=False)
    train(config(**options), tmp_path / "run")
    in_proportion = dict(seen)
    seen.clear()
    train(config(**options | {"conditional": False}), tmp_path / "plain")
    assert sorted(seen) == sorted(in_proportion) == list(range(4))
    for step, (images, labels) in seen.items():
        assert labels is None
        np.testing.assert_array_equal(images, in_proportion[step][0])


def test_a_conditional_training_stops_and_goes_on_without_changing_a_bit(config, tmp_path, monkeypatch):
    """Resident in one go, and streamed in two, in chunks of five steps."""
    whole = config(num_steps=9, **conditional())
    train(whole, tmp_path / "whole")
    monkeypatch.setattr(batches_module, "_CHUNK_BYTES", 5 * 4 * 16 * 16 * 3)
    for num_steps in (4, 9):
        train(config(num_steps=num_steps, data_device_budget_mb=0, **conditional()), tmp_path / "parts")
    states = [final_state(tmp_path / name, whole, num_classes=2) for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    files = [Workdir(tmp_path / name) for name in ("whole", "parts")]
    assert files[0].picture(9).read_bytes() == files[1].picture(9).read_bytes()


def test_several_seeds_of_a_conditional_training_each_draw_their_own_classes(config, tmp_path):
    """As each does by itself, to rounding."""
    train(config(num_steps=3, **conditional()), tmp_path / "both", seeds=2)
    c = config(num_steps=3, **conditional(seed=1))
    train(c, tmp_path / "alone")
    states = [final_state(tmp_path / name, c, num_classes=2) for name in ("alone", "both/seed_1")]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4), *states)


def test_one_class_writes_nothing(config, tmp_path):
    one = {"data_num_phantoms": 2, "conditional": True, "batch_size": 2}  # both benign
    with pytest.raises(UserError, match="^conditional=True learns several classes, and all 2 images of the phantoms"):
        train(config(**one), tmp_path / "run")
    assert not (tmp_path / "run").exists()
