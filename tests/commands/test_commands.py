"""The commands themselves: what they print, their exit codes, and that nothing kills a training for good."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from medgan_jax.checkpoint import Checkpoints, load_generator
from medgan_jax.images import write_png
from medgan_jax.sampling import sample_to_folder
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.workdir import Workdir, read_lines

ROOT = Path(__file__).parents[2]
TINY = {  # as long as shapes are these, also the number of images, the training's program is compiled but once
    "image_size": 16, "latent_dim": 8, "gen_features": 4, "dis_features": 4, "batch_size": 4, "num_sample_images": 4,
    "data.source": "phantom", "data.num_phantoms": 24, "monitor_every_steps": 0, "tensorboard": False, "report": False,
}  # fmt: skip


def command(door, *arguments, **fields):
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, door, *map(str, arguments), *overrides]


@pytest.fixture
def run(command_environment):
    def call(*parts, **fields):
        return subprocess.run(
            command(*parts, **fields), cwd=ROOT, env=command_environment, capture_output=True, text=True, timeout=120
        )

    return call


FORTY_STEPS = {"num_steps": 40, "log_every_steps": 10, "checkpoint_every_steps": 20, "sample_every_steps": 40}


@pytest.fixture(scope="module")
def trained(command_environment, tmp_path_factory):
    """The workdir of a training at step 20 of `FORTY_STEPS`; not to be changed."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    process = start(command_environment, workdir, **FORTY_STEPS | {"num_steps": 20})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return workdir


def assert_refused(done, *says):
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith(("decoding", "reading"))]
    assert line.startswith("error: ")
    for text in says:
        assert text in line
    assert "Traceback" not in done.stdout + done.stderr


SNGAN = "--config=configs/sngan64.py"


@pytest.mark.parametrize(
    ("arguments", "fields", "says"),
    [
        (["--workdir=W"], {}, ["--config"]),
        ([SNGAN], {}, ["--workdir"]),
        (["--config=configs/control_file.py", "--workdir=W"], {}, ["configs/control_file.py:FILE.yaml"]),
        (["--config=configs/sngan65.py", "--workdir=W"], {}, ["sngan65.py", "did you mean configs/sngan64.py"]),
        (["--config=README.md", "--workdir=W"], {}, ["README.md", "is not a working config file"]),
        ([SNGAN, "--workdir="], {}, ["--workdir"]),
        ([SNGAN, "--workdir=W"], {"batchsize": 3}, ["--config.batchsize: there is no such field", "batch_size"]),
        ([SNGAN, "--workdir=W"], {"data.pth": 3}, ["--config.data.pth: there is no such field", "data.path"]),
        ([SNGAN, "--workdir=W"], {"batch_size": "many"}, ["batch_size", "many"]),
        ([SNGAN, "--workdir=W", "--wrkdir=X"], {}, ["wrkdir"]),
        ([SNGAN, "--workdir=W", "surplus"], {}, ["surplus"]),
        ([SNGAN, "--workdir=W", "--seeds=0"], {"data.source": "phantom"}, ["--seeds=0: must be from 1 to 1000"]),
        ([SNGAN, "--workdir=W", "--seeds=few"], {}, ["seeds", "few"]),
        ([SNGAN, "--workdir=W", "--seeds=2"], {"data.source": "phantom", "seed": 2**32 - 1}, ["--seeds=2", "lower it"]),
        ([SNGAN, "--workdir=W"], {"image_size": 100, "data.path": "x"}, ["image_size=100"]),
        ([SNGAN, "--workdir=W"], {"data.path": "no/such/folder"}, ["data.path", "no/such/folder"]),
        ([SNGAN, "--workdir=W"], {"data.source": "phantom", "data.num_phantoms": 2, "conditional": True}, ["'benign'"]),
        ([SNGAN, "--workdir=pyproject.toml"], {"data.source": "phantom"}, ["pyproject.toml", "is a file"]),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, fields, says):
    arguments = [argument.replace("=W", f"={tmp_path}/run") for argument in arguments]
    assert_refused(run("train.py", *arguments, **fields), *says)
    assert not (tmp_path / "run").exists()


def test_sample_refuses_in_one_line(run, tmp_path):
    assert_refused(run("sample.py", f"--checkpoint={tmp_path}/x", f"--out={tmp_path}/y"), "no such folder")
    places = (f"--checkpoint={tmp_path}/x", f"--out={tmp_path}/y")
    assert_refused(run("sample.py", *places, "--num_images=0"), "num_images")
    assert_refused(run("sample.py", "--checkpoint=", places[1]), "--checkpoint")
    assert not (tmp_path / "y").exists()


def test_programs_are_kept_for_the_next_start(command_environment, tmp_path):
    code = (
        "from medgan_jax.cli import run\n"
        "def main():\n"
        "    import jax\n"
        "    jax.jit(lambda x: x + 1)(1.0)\n"
        "run(main, doc='')\n"
    )
    ours, theirs = tmp_path / "user/medgan_jax/xla", tmp_path / "given"
    environment = command_environment | {"XDG_CACHE_HOME": str(tmp_path / "user")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for folder, more in ((theirs, {"JAX_COMPILATION_CACHE_DIR": str(theirs)}), (ours, {})):
        assert not ours.exists()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment | more, check=True, timeout=120)
        assert list(folder.iterdir())


def test_a_device_without_the_memory_is_one_line(command_environment):
    code = (
        "import jax, medgan_jax.cli as cli; cli.run(lambda: jax.numpy.ones((10**7, 10**7)).block_until_ready() and 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=command_environment, capture_output=True, text=True, timeout=120
    )
    assert_refused(done, "too little memory", "lower batch_size")


def test_train_then_sample(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    sampled = run("sample.py", f"--checkpoint={tmp_path}/run", f"--out={tmp_path}/images", "--num_images=5", "--grid")
    assert sampled.returncode == 0, sampled.stderr
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {f"{i:06d}.png" for i in range(5)} | {"grid.png", "manifest.csv"}
    movie = run("sample.py", f"--checkpoint={tmp_path}/run", f"--interpolate={tmp_path}/a.webp", "--num_images=2")
    assert movie.returncode == 0 and (tmp_path / "a.webp").stat().st_size, movie.stderr
    assert movie.stdout == f"wrote {tmp_path}/a.webp\n"
    again = run("train.py", SNGAN, f"--workdir={tmp_path}/run", num_steps=20, **TINY | {"latent_dim": 9})
    assert_refused(again, "latent_dim: 8 -> 9")
    for path in [*(tmp_path / "run/checkpoints/20/tree").rglob("*"), *(tmp_path / "run/generator/20/tree").rglob("*")]:
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    again = run("sample.py", f"--checkpoint={tmp_path}/run", f"--out={tmp_path}/more")
    assert_refused(again, "the checkpoint of step 20 is damaged")
    assert not (tmp_path / "more").exists()


def test_a_conditional_training_by_its_doors(run, tmp_path):
    fields = TINY | {"data.num_phantoms": 50, "data.holdout_fraction": 0.5, "conditional": True}
    trained = run("train.py", SNGAN, f"--workdir={tmp_path}/run", num_steps=3, **fields)
    assert trained.returncode == 0, trained.stderr
    assert "classes: benign " in trained.stdout + trained.stderr
    checkpoint = f"--checkpoint={tmp_path}/run"
    for name, truncation in (("malignant", "0.5"), ("benign", "")):
        options = ["--num_images=2", f"--label={name}", *[f"--truncation={t}" for t in [truncation] if t]]
        sampled = run("sample.py", checkpoint, f"--out={tmp_path}/{name}", *options)
        assert sampled.returncode == 0, sampled.stderr
        assert (tmp_path / name / "manifest.csv").read_text().count(f",{name},{truncation}\n") == 2
    place = f"--out={tmp_path}/out"
    assert_refused(run("sample.py", checkpoint, place, "--label=malign"), "are benign, malignant; did you mean mal")
    assert_refused(run("sample.py", checkpoint, place, "--truncation=nan"), "--truncation=nan: must be above 0")
    judged = run("evaluate.py", checkpoint, place, "--label=malignant")
    assert judged.returncode == 0, judged.stderr
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert "malignant" in json.dumps(result["protocol"])
    assert_refused(run("evaluate.py", checkpoint, f"--out={tmp_path}/no", "--label=x"), "--label=x")
    assert not (tmp_path / "no").exists()


TRAINING_FILE = """
arch: 'SNGAN'
path: 'D/lesions/'
out: 'D/out/'
run: 'mel'
num_epochs: 1
learning_rate: 2e-4
beta_adam: 0.5
batch_size: 4
latent_vector: 8
image_size: 16
number_channels: 3
gen_feature_maps: 4
dis_feature_maps: 4
"""
SAMPLING_FILE = """
arch: 'Generator'
path: 'D/out/mel'
out: 'D/out/'
run: 'gen'
quantity: 5
image_size: 16
"""


def control_file(folder, text):
    path = folder / "control.yaml"
    path.write_text(text.replace("D/", f"{folder}/"))
    return f"--config=configs/control_file.py:{path}"


def test_train_then_sample_by_control_files(run, tmp_path):
    (tmp_path / "lesions/malignant").mkdir(parents=True)
    for i in range(24):  # as many as in TINY
        write_png(tmp_path / f"lesions/malignant/{i}.png", np.full((16, 16, 3), 10 * i, np.uint8))
    trained = run("train.py", control_file(tmp_path, TRAINING_FILE + "n_gpu: 1\n"), num_sample_images=4)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.count("n_gpu has no meaning here") == 1
    saved = json.loads(Workdir(tmp_path / "out/mel").config.read_text())
    assert (saved["num_epochs"], saved["lr_dis"], saved["num_sample_images"]) == (1, 2e-4, 4)
    assert int(final_state(tmp_path / "out/mel").step) == 6
    sampled = run("sample.py", control_file(tmp_path, SAMPLING_FILE), "--seed=3", "--grid")
    assert sampled.returncode == 0, sampled.stderr
    names = {path.name for path in (tmp_path / "out").glob("gen_*")}
    assert names == {f"gen_{i:06d}.png" for i in range(5)} | {"gen_grid.png", "gen_manifest.csv"}
    assert "gen_000004.png,3,4,6," in (tmp_path / "out/gen_manifest.csv").read_text()


@pytest.mark.parametrize(
    ("door", "text", "arguments", "says"),
    [
        ("train.py", SAMPLING_FILE, ["--config.num_epochs=2"], ["belongs to sample.py"]),
        ("sample.py", TRAINING_FILE, ["--config.num_epochs=2"], ["belongs to train.py"]),
        ("sample.py", SAMPLING_FILE, ["--config.quantiy=2"], ["did you mean quantity"]),
        ("train.py", TRAINING_FILE + "sed: 3", [], ["control.yaml: sed is not a key, did you mean seed?"]),
        ("train.py", "arch: !!python/object/apply:os.system ['touch D/exploded']", [], ["has the tag"]),
        ("train.py", TRAINING_FILE, ["--workdir="], ["give --workdir="]),
    ],
)
def test_control_files_are_refused_in_one_line(run, tmp_path, door, text, arguments, says):
    done = run(door, control_file(tmp_path, text), *arguments)
    assert_refused(done, *says)
    assert "is not a working config file" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["control.yaml"]


def test_a_config_that_is_an_argument_of_its_own(run, tmp_path):
    option, file = control_file(tmp_path, SAMPLING_FILE).split("=")
    assert_refused(run("train.py", option, file), "belongs to sample.py")


def test_train_then_evaluate(run, tmp_path):
    fields = TINY | {"data.num_phantoms": 50, "data.holdout_fraction": 0.5, "evaluate_every_steps": 2}  # leaves 24
    trained = run("train.py", SNGAN, f"--workdir={tmp_path}/run", num_steps=3, **fields)
    assert trained.returncode == 0, trained.stderr
    judged = run("evaluate.py", f"--checkpoint={tmp_path}/run")
    assert judged.returncode == 0, judged.stderr
    assert "KID, by pyramid" in judged.stdout
    assert "not measured: MS-SSIM: needs images of 161 px, and these have 16" in judged.stdout
    result = tmp_path / "run/evaluation/evaluation.json"
    figures = json.loads(result.read_text())["figures"]
    assert {"ssim", "swd_16", "kid", "fid", "coverage", "checkerboard_2", "similarity", "copies"} <= set(figures)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())
    best = load_generator(tmp_path / "run/best", replicated(data_mesh()))
    sample_to_folder(
        best, tmp_path / "fakes", num_images=24, seed=0, batch_size=64, mesh=data_mesh(), grid=True
    )  # grid.png is not taken for one of them
    options = ("--data.source=phantom", "--data.num_phantoms=48", "--pairing=random", "--features=pixels")
    judged = run("evaluate.py", f"--fakes={tmp_path}/fakes", f"--out={tmp_path}/out", *options)
    assert judged.returncode == 0, judged.stderr
    assert "KID, by pixels" in judged.stdout
    assert (tmp_path / "out/evaluation.html").exists()


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["--checkpoint", "--fakes"]),
        (["--checkpoint=D/none"], ["no such folder"]),
        (["--fakes=D/none", "--reals=D"], ["--fakes", "no such"]),
        (["--fakes=D", "--reals=D"], ["--fakes", "holds no images"]),
        (["--fakes=D", "--reals=D", "--pairing=best"], ["pairing"]),
        (["--fakes=D", "--reals=D", "--data.lable=x"], ["lable"]),
        (["--checkpoint=D", "--features=inception"], ["--inception_weights"]),
        (["--checkpoint=D", "--inception_weights=D/bomb.pth"], ["bomb.pth"]),
        (["--checkpoint=D", "--inception_weights=D/text.npz"], ["text.npz"]),
    ],
)
def test_evaluate_refuses_in_one_line(run, tmp_path, arguments, says):
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    (tmp_path / "text.npz").write_text("no arrays")
    assert_refused(run("evaluate.py", *[argument.replace("D", str(tmp_path)) for argument in arguments]), *says)
    assert not (tmp_path / "exploded").exists()
    assert not list(tmp_path.rglob("evaluation*"))


def start(environment, workdir, *flags, **fields):
    return subprocess.Popen(
        command("train.py", SNGAN, f"--workdir={workdir}", *flags, **TINY | fields),
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def logged(workdir):
    path = Workdir(workdir).metrics
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_lines(process, workdir, lines):
    while logged(workdir) < lines and process.poll() is None:
        time.sleep(0.01)


def lines(workdir):
    parsed = [json.loads(line) for line in Workdir(workdir).metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in parsed]


def final_state(workdir):
    from medgan_jax.config import parse_config

    config = parse_config(json.loads(Workdir(workdir).config.read_text()))
    checkpoints = Checkpoints(Workdir(workdir).checkpoints, keep=None)
    like = jax.eval_shape(lambda: initial_state(build_networks(config), config))
    return checkpoints.restore(checkpoints.latest_step(), like, replicated(data_mesh()))


def test_kill_at_random_moments_changes_nothing(command_environment, tmp_path):
    """150 steps in one go, and 150 steps with `kill -9` and restarts: the same bits, the same log."""
    fields = {"num_steps": 150, "log_every_steps": 5, "sample_every_steps": 50, "checkpoint_every_steps": 20}
    whole = start(command_environment, tmp_path / "whole", **fields)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    seed = time.time_ns()
    print(f"seed {seed}")  # shown when the test fails
    chance = random.Random(seed)
    kills = 0
    for goal in (chance.randint(3, 12), chance.randint(13, 25)):
        process = start(command_environment, tmp_path / "killed", **fields)
        wait_for_lines(process, tmp_path / "killed", goal)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        kills += process.returncode == -signal.SIGKILL
    process = start(command_environment, tmp_path / "killed", **fields)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert kills >= 1
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "killed")] == list(range(5, 151, 5))
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "killed"), final_state(tmp_path / "whole"))


@pytest.mark.parametrize(("number", "budget"), [(signal.SIGINT, 2048), (signal.SIGTERM, 0)])
def test_signals_save_and_leave(command_environment, tmp_path, number, budget):
    """Also where a thread streams the images."""
    fields = {"num_steps": 10**6, "log_every_steps": 5, "data.device_budget_mb": budget}
    process = start(command_environment, tmp_path / "run", **fields)
    wait_for_lines(process, tmp_path / "run", 3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in output
    step = int(final_state(tmp_path / "run").step)
    assert step >= 15
    assert f"stopped at step {step} of 1000000, saved" in output
    assert lines(tmp_path / "run")[-1]["step"] == step - step % 5


def test_several_seeds_survive_kills(command_environment, tmp_path):
    """`kill -9` at a random moment, near a save: all stand at one step after the next start, and end as they must."""
    fields = {"num_steps": 60, "log_every_steps": 5, "sample_every_steps": 60, "checkpoint_every_steps": 5}
    seed = time.time_ns()
    print(f"seed {seed}")  # shown when the test fails
    chance = random.Random(seed)
    process = start(command_environment, tmp_path / "run", "--seeds=2", **fields)
    wait_for_lines(process, tmp_path / "run/seed_1", chance.randint(2, 8))
    time.sleep(chance.uniform(0, 0.1))
    process.kill()
    process.communicate()
    process = start(command_environment, tmp_path / "run", "--seeds=2", **fields)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for number in (0, 1):
        assert [line["step"] for line in lines(tmp_path / f"run/seed_{number}")] == list(range(5, 61, 5))
        assert int(final_state(tmp_path / f"run/seed_{number}").step) == 60
        assert (
            load_generator(tmp_path / f"run/seed_{number}", replicated(data_mesh())).about["config"]["seed"] == number
        )
    spread = json.loads((tmp_path / "run/seeds.json").read_text())
    assert f"{spread['metrics']['loss_dis']['mean']:.4g} +- " in output
    assert "--seeds=2" in list(read_lines(Workdir(tmp_path / "run/seed_1").runs))[0]["command"]


def test_a_signal_before_the_first_step_leaves_at_once(command_environment, tmp_path):
    environment = command_environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # so that there is much to prepare
    process = start(environment, tmp_path / "run", **{"data.num_phantoms": 5000})
    while not list(tmp_path.glob("cache/medgan_jax/*.tmp")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in output
    assert "what was saved before is as it was" in output
    assert not list(tmp_path.glob("cache/medgan_jax/*.tmp"))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(command_environment, trained, tmp_path):
    """A limit on the size of files stands in for the disk; the same command then goes on."""
    shutil.copytree(trained, tmp_path / "run")
    train = command("train.py", SNGAN, f"--workdir={tmp_path}/run", **TINY | FORTY_STEPS)
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *train],
        cwd=ROOT, env=command_environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert limited.returncode == 2
    assert "Traceback" not in limited.stderr
    (line,) = [line for line in limited.stderr.splitlines() if "error: " in line]
    assert str(tmp_path / "run") in line
    assert "make room" in line
    assert int(final_state(tmp_path / "run").step) == 20
    again = start(command_environment, tmp_path / "run", **FORTY_STEPS)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert [line["step"] for line in lines(tmp_path / "run")] == [10, 20, 30, 40]
