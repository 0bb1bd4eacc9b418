"""Several processes train as one does, agree, and end together."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from medgan_jax import distributed
from medgan_jax.checkpoint import Checkpoints
from medgan_jax.config import parse_config
from medgan_jax.data.batches import batch_indices
from medgan_jax.distributed import Cluster, find_cluster
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.loop import train
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
TINY = {
    "image_size": 16, "latent_dim": 8, "gen_features": 4, "dis_features": 4, "batch_size": 4, "num_sample_images": 4,
    "log_every_steps": 2, "sample_every_steps": 4, "checkpoint_every_steps": 4, "monitor_every_steps": 0,
    "tensorboard": False, "report": False,
    "data.source": "phantom", "data.num_phantoms": 12,
}  # fmt: skip
EXIT_S = 30  # how long the processes may take to notice that one is lost


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def launch(command_environment):
    """Starts a Python process on some devices, which does not outlive the test."""
    started = []

    def call(*arguments, devices=1):
        cheap = {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env=command_environment | cheap,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        )
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start(launch, tmp_path):
    """Starts two processes of one training, which share the images' cache."""

    def call(*workdirs, of_process_1=(), **fields):
        port = free_port()
        fields = TINY | {"data.cache_dir": tmp_path / "cache"} | fields
        for process in (0, 1):
            fields |= dict(of_process_1) if process else {}
            overrides = [f"--config.{name}={value}" for name, value in fields.items()]
            flags = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={process}"]
            yield launch(
                "train.py", "--config=configs/sngan64.py", f"--workdir={workdirs[-process]}", *flags, *overrides
            )

    return lambda *args, **kwargs: list(call(*args, **kwargs))


def finish(processes, timeout=120):
    """Exit codes, and what the processes printed on stdout and stderr."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], outputs


def error_lines(outputs):
    return [[line for line in stderr.splitlines() if line.startswith("error: ")] for _, stderr in outputs]


def logged(workdir):
    path = Workdir(workdir).metrics
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(processes, workdir, step):
    while (logged(workdir) or [0])[-1] < step and all(process.poll() is None for process in processes):
        time.sleep(0.05)


def trained_config(workdir):
    return parse_config(json.loads(Workdir(workdir).config.read_text()))


def saved_state(workdir, step=None):
    """The state saved at `step`, or last."""
    config = trained_config(workdir)
    checkpoints = Checkpoints(Workdir(workdir).checkpoints, keep=None)
    like = jax.eval_shape(lambda: initial_state(build_networks(config, 2 * config.conditional), config))
    return checkpoints.restore(step or checkpoints.latest_step(), like, replicated(data_mesh()))


def test_two_processes_train_as_one_does_and_one_goes_on(start, launch, tmp_path):
    """Against one process with two devices; what two have saved, one with four continues."""
    one, two = Workdir(tmp_path / "one"), Workdir(tmp_path / "two")
    codes, outputs = finish(start(two.path, num_steps=8))
    assert codes == [0, 0], outputs
    assert "finished step 8" in outputs[0][0]
    assert "step" not in "".join(outputs[1])  # process 0 alone prints
    assert logged(two.path) == [2, 4, 6, 8]
    assert sorted(path.name for path in two.samples.iterdir()) == ["reals.png"] + [
        f"step_{step:08d}.png" for step in (0, 4, 8)
    ]
    config = dataclasses.replace(trained_config(two.path), num_steps=12)
    assert train(config, one.path) == 0
    assert two.reals.read_bytes() == one.reals.read_bytes()

    def assert_same(step):
        states = saved_state(one.path, step), saved_state(two.path, step)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), *states)

    assert_same(8)
    overrides = [f"--config.{name}={value}" for name, value in TINY.items()]
    flags = ["--config=configs/sngan64.py", f"--workdir={two.path}", "--config.num_steps=12"]
    codes, outputs = finish([launch("train.py", *flags, *overrides, devices=4)])
    assert codes == [0], outputs
    assert logged(two.path) == [2, 4, 6, 8, 10, 12]
    assert_same(12)


def test_a_signal_to_one_stops_both_and_a_lost_one_ends_the_other(start, tmp_path):
    processes = start(tmp_path / "run", num_steps=10**6)
    wait_for_step(processes, tmp_path / "run", 6)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert "Traceback" not in str(outputs)
    saved = int(saved_state(tmp_path / "run").step)
    assert f"stopped at step {saved} of 1000000, saved" in outputs[0][0]

    processes = start(tmp_path / "run", num_steps=10**6)
    wait_for_step(processes, tmp_path / "run", saved + 6)
    processes[1].kill()
    since = time.monotonic()
    codes, outputs = finish(processes, timeout=EXIT_S)
    print(f"the other left {time.monotonic() - since:.1f} s later")
    assert codes == [2, -signal.SIGKILL], outputs
    (line,) = error_lines(outputs)[0]
    assert "gone" in line
    assert "Traceback" not in outputs[0][1]
    assert int(saved_state(tmp_path / "run").step) >= saved


def test_an_error_in_one_ends_both(start, tmp_path):
    codes, outputs = finish(start(tmp_path / "run", of_process_1={"seed": 1}), timeout=EXIT_S)
    assert codes == [2, 2], outputs
    for (line,) in error_lines(outputs):
        assert "other hyperparameters than in process 0" in line
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    codes, outputs = finish(start(tmp_path / "run"), timeout=EXIT_S)
    assert codes == [2, 2], outputs
    for (line,) in error_lines(outputs):
        assert "has checkpoints but no config.json" in line
    codes, outputs = finish(start(tmp_path / "one", tmp_path / "other"), timeout=EXIT_S)
    assert codes == [2, 2], outputs
    for (line,) in error_lines(outputs):
        assert "is not the folder that process 0 sees" in line


def test_a_lone_start_gives_up(command_environment):
    """Process 0 without the others, and another without process 0."""
    for process in (0, 1):
        code = (
            "from medgan_jax.cli import run\n"
            "from medgan_jax.distributed import Cluster, joined\n"
            "def main():\n"
            f"    with joined(Cluster('localhost:{free_port()}', 2, {process}), timeout_s=2): pass\n"
            "run(main, doc='')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=command_environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: not all of the 2 processes met at localhost:")
        assert len(done.stderr.splitlines()) == 1


READS = """
import json, os
import numpy as np
from medgan_jax import distributed
from medgan_jax.cli import run
from medgan_jax.data.batches import StreamedBatches
from medgan_jax.sharding import data_mesh

read, rows = os.preadv, []
os.preadv = lambda file, buffers, offset: rows.append(offset // 48) or read(file, buffers, offset)
def main():
    with distributed.joined(distributed.Cluster("localhost:PORT", 2, PROCESS)):
        images = np.memmap("IMAGES", np.uint8, "r", shape=(22, 4, 4, 3))
        batches = StreamedBatches(images, batch_size=4, seed=0, first_step=0, mesh=data_mesh())
        batches.take(1)
        batches.close()
    print(json.dumps(rows))
run(main, doc="")
"""


def test_a_process_reads_only_its_own_rows(launch, tmp_path):
    np.random.default_rng(0).integers(0, 256, (22, 4, 4, 3), np.uint8).tofile(tmp_path / "images")
    code = READS.replace("PORT", str(free_port())).replace("IMAGES", str(tmp_path / "images"))
    processes = [launch("-c", code.replace("PROCESS", str(process))) for process in (0, 1)]
    codes, outputs = finish(processes)
    assert codes == [0, 0], outputs
    for process, (stdout, _) in enumerate(outputs):
        rows = json.loads(stdout)
        chunks = batch_indices(0, 512, num_images=22, batch_size=4, seed=0)[:, 2 * process : 2 * process + 2]
        assert rows in (chunks[:256].ravel().tolist(), chunks.ravel().tolist())  # with the one read ahead or without


JOINED = """
import time
from medgan_jax import distributed
from medgan_jax.cli import run

distributed._LOST_S = 3
def main():
    with distributed.joined(distributed.Cluster("localhost:PORT", 2, PROCESS)):
        print("joined", flush=True)
        time.sleep(60)
run(main, doc="")
"""


@pytest.fixture
def joined(launch):
    """Two processes that have joined, and do nothing; one that is silent for 3 s counts as lost."""
    code = JOINED.replace("PORT", str(free_port()))
    processes = [launch("-c", code.replace("PROCESS", str(process))) for process in (0, 1)]
    assert [process.stdout.readline() for process in processes] == ["joined\n"] * 2
    time.sleep(1.5)
    return processes


def test_a_silent_process_ends_the_others(joined):
    """One that hangs, or whose machine went away, closes no connection; its silence is noticed."""
    joined[1].send_signal(signal.SIGSTOP)
    codes, outputs = finish(joined[:1], timeout=EXIT_S)
    assert codes == [2]
    assert error_lines(outputs) == [
        ["error: process 1 is gone; start all processes again to go on from what was saved"]
    ]


def test_the_service_aborts_after_we_have_left():
    """It may count a process as dead half its time after the last sign of life: then one line is out, and we are."""
    left = distributed._LOST_S + 2 * distributed._BEAT_S + distributed._LINGER_S
    assert 1.5 * left < distributed._BACKSTOP_S / 2
    assert distributed._LINGER_S > 2 * distributed._BEAT_S  # the others look once a beat


def test_the_others_do_not_outlive_process_0(joined):
    joined[0].kill()
    codes, _ = finish(joined[1:], timeout=EXIT_S)
    assert codes[0] != 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((None, 2, None), "--coordinator and --process_id missing; give all of"),
        (("host:1", 2, 2), "--process_id=2: must be below --num_processes=2"),
        (("host:1", 2, -1), "--process_id=-1: must be a whole number"),
        (("host:1", 0, 0), "--num_processes=0: must be at least 1"),
        (("host", 2, 1), "--coordinator=host: must be HOST:PORT"),
        (("host:99999", 2, 1), "--coordinator=host:99999: must be HOST:PORT"),
        (("", 2, 1), "--coordinator=: must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit(flags, says):
    with pytest.raises(UserError, match=says):
        find_cluster(*flags)


def test_mistakes_are_one_line(command_environment, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, says in [
            (["--num_processes=2"], "--coordinator and --process_id missing"),
            ([f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0"], f"port {port}"),
        ]:
            done = subprocess.run(
                [sys.executable, "train.py", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run", *flags],
                cwd=ROOT, env=command_environment, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == 2
            (line,) = done.stderr.splitlines()
            assert line.startswith("error: ") and says in line
    assert not (tmp_path / "run").exists()


SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[07-08]",
}  # fmt: skip
TORCHRUN = {"MASTER_ADDR": "n0", "MASTER_PORT": "29500", "RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, None),  # a batch script without srun: there is one process
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, Cluster("node07:61441", 2, 1, 0)),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, None),
        (TORCHRUN | {"WORLD_SIZE": "2"}, Cluster("n0:29500", 2, 1)),
        (
            TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            Cluster("n0:29501", 4, 1, 1),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "[::1]:5", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"},
            Cluster("[::1]:5", 3, 2),
        ),
        (
            {
                "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            },
            Cluster("10.96.0.1:62624", 2, 1, 0),
        ),
    ],
)  # fmt: skip
def test_the_environment_is_recognised(monkeypatch, environment, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_P", "JAX_PROC", "MASTER_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_cluster(None, None, None) == expected


def test_incomplete_environment_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID missing"):
        find_cluster(None, None, None)
