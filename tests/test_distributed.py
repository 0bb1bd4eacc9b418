"""Several processes train as one does, and end together."""

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

from medgan_jax.checkpoint import Checkpoints
from medgan_jax.config import parse_config
from medgan_jax.data.batches import batch_indices
from medgan_jax.distributed import find_cluster, joined
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = {
    "image_size": 16, "latent_dim": 8, "gen_features": 4, "dis_features": 4, "batch_size": 4, "num_sample_images": 4,
    "log_every_steps": 2, "sample_every_steps": 4, "checkpoint_every_steps": 4, "monitor_every_steps": 0,
    "tensorboard": False, "report": False, "guard": False,
    "data.source": "phantom", "data.num_phantoms": 12,
}  # fmt: skip
EXIT_S = 90  # how long a process may take to notice that another one is lost


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def launch(command_environment):
    """Starts a Python process with one device, which does not outlive the tests."""
    started = []

    def call(*arguments):
        command = [sys.executable, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, env=command_environment, text=True, **pipes))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def start(launch, tmp_path_factory):
    """Starts two processes of one training, which share the images' cache."""
    cache = tmp_path_factory.mktemp("cache")

    def call(*workdirs, of_process_1=(), **fields):
        port, processes = free_port(), []
        fields = TINY | {"data.cache_dir": cache} | fields
        for process in (0, 1):
            fields |= dict(of_process_1) if process else {}
            overrides = [f"--config.{name}={value}" for name, value in fields.items()]
            flags = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={process}"]
            workdir = f"--workdir={workdirs[-process]}"
            processes.append(launch("train.py", "--config=configs/sngan64.py", workdir, *flags, *overrides))
        return processes

    return call


def finish(processes, timeout=120):
    """Exit codes, and what the processes printed on stdout and stderr."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], outputs


def error_line(output):
    (line,) = [line for line in output[1].splitlines() if line.startswith("error: ")]
    return line


def logged(workdir):
    path = Workdir(workdir).metrics
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(processes, workdir, step):
    while (logged(workdir) or [0])[-1] < step and all(process.poll() is None for process in processes):
        time.sleep(0.02)


def trained_config(workdir):
    return parse_config(json.loads(Workdir(workdir).config.read_text()))


def saved_state(workdir):
    config = trained_config(workdir)
    checkpoints = Checkpoints(Workdir(workdir).checkpoints, keep=None)
    like = jax.eval_shape(lambda: initial_state(build_networks(config), config))
    return checkpoints.restore(checkpoints.latest_step(), like, replicated(data_mesh()))


@pytest.fixture(scope="module")
def pair(start, tmp_path_factory):
    """Two processes, of which one gets SIGTERM; the same command again, of which one is killed."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    results, saved = [], 0
    for stop in (signal.SIGTERM, signal.SIGKILL):
        processes = start(workdir, num_steps=10**6)
        wait_for_step(processes, workdir, saved + 4)
        processes[1].send_signal(stop)
        results.append((*finish(processes, EXIT_S), int(saved_state(workdir).step)))
        saved = results[-1][-1]
    return workdir, results


def test_a_signal_to_one_saves_and_ends_both(pair):
    codes, outputs, saved = pair[1][0]
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert f"stopped at step {saved} of 1000000, saved" in outputs[0][0]
    assert "step" not in outputs[1][0]  # process 0 alone prints
    assert "Traceback" not in str(outputs)


def test_a_lost_process_ends_the_other(pair):
    """Where it waits for the lost one's numbers; elsewhere JAX aborts it."""
    codes, outputs, _ = pair[1][1]
    assert codes == [2, -signal.SIGKILL], outputs
    assert "another process is gone" in error_line(outputs[0]) and "Traceback" not in outputs[0][1]


def test_two_processes_train_as_one_does_whatever_stopped_them(pair, tmp_path):
    """Against one process with two devices that nothing stopped; such a one also goes on with what two have saved."""
    workdir, (*_, (_, _, step)) = pair
    config = dataclasses.replace(trained_config(workdir), num_steps=step + 4)
    runs = [Workdir(workdir), Workdir(tmp_path / "one")]
    for run in runs:
        assert train(config, run.path) == 0
    assert logged(workdir) == logged(tmp_path / "one") == list(range(2, step + 5, 2))
    assert runs[0].picture(step).read_bytes() and runs[0].reals.read_bytes() == runs[1].reals.read_bytes()
    states = [saved_state(run.path) for run in runs]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), *states)


def test_an_error_in_one_is_one_line_and_ends_both(start, tmp_path):
    cases = {
        "other hyperparameters than in process 0": start(tmp_path / "run", of_process_1={"seed": 1}),
        "is not the folder that process 0 sees": start(tmp_path / "one", tmp_path / "other"),
    }
    for says, processes in cases.items():
        codes, outputs = finish(processes, EXIT_S)
        assert codes[1] == 2 and codes[0] != 0, outputs
        assert says in error_line(outputs[1])


LONE = """
import os
from medgan_jax.distributed import find_cluster, joined
from medgan_jax.errors import reported
try:
    with reported(), joined(find_cluster("localhost:PORT", 2, 1), timeout_s=2): pass
except SystemExit as leaving:
    os._exit(leaving.code)
"""


def test_who_waits_in_vain_says_so(launch):
    (code,), ((_, stderr),) = finish([launch("-c", LONE.replace("PORT", str(free_port())))])
    assert code == 2
    (line,) = stderr.splitlines()
    assert line.startswith("error: not all processes of this training met at localhost:")


READS = """
import json, os
import numpy as np
from medgan_jax.data.batches import StreamedBatches
from medgan_jax.distributed import find_cluster, joined
from medgan_jax.sharding import data_mesh

read, rows = os.preadv, []
os.preadv = lambda file, buffers, offset: rows.append(offset // 48) or read(file, buffers, offset)
with joined(find_cluster("localhost:PORT", 2, PROCESS)):
    images = np.memmap("IMAGES", np.uint8, "r", shape=(22, 4, 4, 3))
    batches = StreamedBatches(images, batch_size=4, seed=0, first_step=0, mesh=data_mesh())
    batches.take(1)
    batches.close()
print(json.dumps(rows))
"""


def test_a_process_reads_only_its_own_rows(launch, tmp_path):
    np.random.default_rng(0).integers(0, 256, (22, 4, 4, 3), np.uint8).tofile(tmp_path / "images")
    code = READS.replace("PORT", str(free_port())).replace("IMAGES", str(tmp_path / "images"))
    codes, outputs = finish([launch("-c", code.replace("PROCESS", str(process))) for process in (0, 1)])
    assert codes == [0, 0], outputs
    for process, (stdout, _) in enumerate(outputs):
        rows = json.loads(stdout.splitlines()[-1])  # after what gloo prints
        chunks = batch_indices(0, 512, num_images=22, batch_size=4, seed=0)[:, 2 * process : 2 * process + 2]
        assert rows in (chunks[:256].ravel().tolist(), chunks.ravel().tolist())  # with the one read ahead or without


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        cluster = joined(find_cluster(address, 2, 0))
        with pytest.raises(UserError, match=f"port .* of {address}: address already in use"), cluster:
            pass


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((None, 2, None), "--coordinator and --process_id missing; give all of"),
        (("host:1", 2, 2), "--process_id=2: must be below --num_processes=2"),
        (("host:1", 2, -1), "--process_id=-1: must be a whole number"),
        (("host:1", 0, 0), "--num_processes=0: must be at least 1"),
        (("host", 2, 1), "--coordinator=host: must be HOST:PORT"),
        (("host:99999", 2, 1), "--coordinator=host:99999: must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit(flags, says):
    with pytest.raises(UserError, match=says):
        find_cluster(*flags)


SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[07-08]",
}  # fmt: skip
TORCHRUN = {"MASTER_ADDR": "n0", "MASTER_PORT": "29500", "RANK": "1"}


def given(address, number, index, **more):
    fields = {"coordinator_address": address, "num_processes": number, "process_id": index}
    return {**fields, "cluster_detection_method": "deactivate", **more}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, None),  # a batch script without srun: there is one process
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, None),
        (TORCHRUN | {"WORLD_SIZE": "2"}, given("n0:29500", 2, 1)),
        (
            TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            given("n0:29501", 4, 1, local_device_ids=1),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "[::1]:5", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"},
            given("[::1]:5", 3, 2),
        ),
    ],
)
def test_the_environment_is_recognised(monkeypatch, environment, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_P", "JAX_PROC", "MASTER_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_cluster(None, None, None) == expected


def test_an_incomplete_environment_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID missing"):
        find_cluster(None, None, None)
