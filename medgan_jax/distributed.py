"""Several processes, one training: how they find each other, agree, and end together.

`jax.distributed` connects them; what they say to each other beside arrays goes through the coordination service that it
runs in process 0. A lone process starts none of this, and every function here is then free.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from medgan_jax.errors import UserError

JOIN_S = 120  # the processes of one training start within so many seconds of each other
_BEAT_S = 1  # how often a process says that it is alive, and looks whether the others are well
_LOST_S = 20  # silent for so long, a process counts as lost; a hanging disk may hold the interpreter for a while
_LINGER_S = 2.5  # for so long process 0 stays, so that the others read why it ends
# The same for the coordination service, which can only abort. It hears of a process at half this interval, so that it
# may give up half of it after the last sign of life: later than all of the above.
_BACKSTOP_S = 80
_STOPPED = "stopped; what was saved before is as it was"
_GO_ON = "start all processes again to go on from what was saved"
_PEER_LOST = re.compile(r"gloo|nccl|unavailable|aborted|connection|coordination", re.IGNORECASE)

_PREFIX = "medgan_jax/"  # of our keys in the coordination service
_MESSAGES = itertools.count()  # from process 0 to all, each under a key of its own
_MESSAGES_KEPT = 1000  # no process is so far behind


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one training, and which of them this is.

    Attributes:
      coordinator: HOST:PORT where process 0 listens.
      num_processes: how many there are, at least 2.
      process_id: from 0.
      local_device: the one device of the machine that is this process's; None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device: int | None = None


def find_cluster(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Cluster | None:
    """The cluster that the flags describe, or else the environment; None for a lone process.

    The environment is that of JAX (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), of torchrun
    (MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK), or what JAX knows: srun, Open MPI, Cloud TPU, GKE.

    Args:
      coordinator: --coordinator.
      num_processes: --num_processes.
      process_id: --process_id.

    Raises:
      UserError: they do not fit together.
    """
    flags = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    if any(value is not None for value in flags.values()):
        return _checked(flags)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if any(os.environ.get(name) for name in names):
        return _checked({name: os.environ.get(name) or None for name in names})
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
    if all(os.environ.get(name) for name in names):
        address, port, size, rank = (os.environ[name] for name in names)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and port.isdecimal():
            port = str(int(port) + 1)  # torchrun itself listens on MASTER_PORT
        values = {"MASTER_ADDR:MASTER_PORT": f"{address}:{port}", "WORLD_SIZE": size, "RANK": rank}
        return _checked(values, local_device=os.environ.get("LOCAL_RANK"))
    return _known_to_jax()


def _checked(values: dict[str, Any], local_device: str | None = None) -> Cluster | None:
    """From the address, the number and the id, each under the name by which the user gave it."""
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing; give all of {', '.join(values)}, or none")
    (_, address), (number_name, number), (id_name, index) = values.items()
    for name, value in ((number_name, number), (id_name, index)):
        if not re.fullmatch(r"\d{1,9}", str(value)):
            raise UserError(f"{name}={value}: must be a whole number, 0 or more")
    number, index = int(number), int(index)
    if number < 1:
        raise UserError(f"{number_name}={number}: must be at least 1")
    if index >= number:
        raise UserError(f"{id_name}={index}: must be below {number_name}={number}; the processes count from 0")
    port = re.fullmatch(r"(?:[^\s:\[\]]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", str(address))
    if not port or not 0 < int(port[1]) < 65536:
        raise UserError(f"{next(iter(values))}={address}: must be HOST:PORT of process 0, such as node0:5555")
    local = int(local_device) if local_device and local_device.isdecimal() else None
    return Cluster(str(address), number, index, local) if number > 1 else None


def _known_to_jax() -> Cluster | None:
    """What jax.distributed.initialize() would find out, without its waiting: a cluster of one is none."""
    from jax._src import clusters

    # A batch script has SLURM's variables too; only in a step that srun started are there other processes.
    step_size = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    for kind in clusters.ClusterEnv._cluster_types:
        if kind.opt_in_only_method or (kind.name == "slurm" and step_size == "1"):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                present = kind.is_env_present()
            if not present:
                continue
            number = int(step_size) if kind.name == "slurm" else kind.get_process_count()
            if number < 2:
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            address = kind.get_coordinator_address(timeout_secs=JOIN_S, override_coordinator_port=port)
            return Cluster(address, number, kind.get_process_id(), kind.get_local_process_id())
        except Exception as error:
            if not kind.name:  # Kubernetes, where most pods are alone and may not look around
                continue
            raise UserError(
                f"{kind.name}: cannot find the processes of this training ({error}); give --coordinator, "
                "--num_processes and --process_id"
            ) from error
    return None


@contextlib.contextmanager
def joined(cluster: Cluster | None, *, timeout_s: float = JOIN_S) -> Iterator[None]:
    """Connects the processes of a training, for as long as it lasts; None is a lone process.

    They end together: when one fails, is stopped or disappears, the others end with an error in about `_LOST_S`
    seconds, from whatever they wait for. After an error the caller must leave by os._exit: an ordinary exit waits
    for processes that may be gone.

    Raises:
      UserError: the others cannot be reached within `timeout_s` seconds.
    """
    if cluster is None:
        yield
        return
    _connect(cluster, timeout_s)
    if cluster.process_id > 0:
        logging.getLogger("medgan_jax").setLevel(logging.ERROR)  # process 0 says it
    watch = _Watch(cluster)
    try:
        yield
        jax.distributed.shutdown()  # waits for the others
    except BaseException as error:
        # A computation or a save that waits for the other fails when it is gone, with words of its own.
        cause = error.__cause__ or error
        if not isinstance(cause, UserError | OSError | KeyboardInterrupt) and _PEER_LOST.search(str(cause)):
            time.sleep(3 * _BEAT_S)  # what happened to the other may be known by then: `watch` says that
            error = UserError(f"another process is gone ({str(cause).splitlines()[0][:120]}); {_GO_ON}")
        watch.tell(error)
        raise error
    finally:
        watch.stop()


def is_leader() -> bool:
    """Whether this is the process that writes files and prints: process 0."""
    return jax.process_index() == 0


def from_leader(value: Any) -> Any:
    """What process 0 gives here, anything JSON-able, on all processes; each must come here, in the same order."""
    if jax.process_count() == 1:
        return value
    number = next(_MESSAGES)
    if is_leader():
        _put(f"message/{number}", value)
        if number >= _MESSAGES_KEPT:
            _client().key_value_delete(f"{_PREFIX}message/{number - _MESSAGES_KEPT}")
    pause = 0.001
    while True:
        try:
            return json.loads(_client().key_value_try_get(f"{_PREFIX}message/{number}"))
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("NOT_FOUND"):
                raise
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def agree(count: int, caught: int) -> tuple[int, int]:
    """Process 0's `count`, and the first number other than 0 among `caught`, the signals that processes caught."""
    if jax.process_count() == 1:
        return count, caught
    if caught:
        _put(f"caught/{jax.process_index()}", caught)
    if is_leader():
        caught = caught or next((int(number) for _, number in _client().key_value_dir_get(_PREFIX + "caught/")), 0)
    count, caught = from_leader((count, caught))
    return count, caught


def _client() -> Any:
    from jax._src import distributed  # the coordination service has no public interface

    return distributed.global_state.client


def _put(name: str, value: Any, *, again: bool = True) -> None:
    _client().key_value_set(_PREFIX + name, json.dumps(value), allow_overwrite=again)


def _connect(cluster: Cluster, timeout_s: float) -> None:
    port = int(cluster.coordinator.rpartition(":")[2])
    if cluster.process_id == 0:
        try:
            with socket.create_server(("", port)):
                pass
        except OSError as error:
            raise UserError(f"port {port} of {cluster.coordinator}: {error.strerror.lower()}; give another") from error
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.num_processes,
                cluster.process_id,
                local_device_ids=cluster.local_device,
                cluster_detection_method="deactivate",
                initialization_timeout=int(timeout_s) + _BACKSTOP_S,  # where it ends, it aborts
                heartbeat_timeout_seconds=_BACKSTOP_S,
                shutdown_timeout_seconds=JOIN_S,
            )
        except BaseException as error:
            failure.append(error)

    connecting = threading.Thread(target=connect, daemon=True)  # so that this one can give up, and be interrupted
    connecting.start()
    connecting.join(timeout_s)
    if connecting.is_alive() or failure:
        reason = f" ({str(failure[0]).splitlines()[0][:120]})" if failure else ""
        raise UserError(
            f"not all of the {cluster.num_processes} processes met at {cluster.coordinator} within {timeout_s:g} s"
            f"{reason}; start all of them, and check that this address of process 0 can be reached"
        )


class _Watch:
    """A thread that says that this process is alive, and ends it when another is not."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._seen: dict[str, tuple[str, float]] = {}
        self._failed = False
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def tell(self, error: BaseException) -> None:
        """Lets the other processes know why this one ends."""
        self._failed = True
        code, reason = 1, repr(error)
        if isinstance(error, KeyboardInterrupt):
            code, reason = 128 + (error.args[0] if error.args else 2), _STOPPED
        elif isinstance(error, UserError | OSError):
            code, reason = 2, str(error)
        self._fail(code, f"process {self._cluster.process_id}: {reason}")
        self._linger()

    def _linger(self) -> None:
        if self._cluster.process_id == 0:  # the service ends with it: the others must have read why
            time.sleep(_LINGER_S)

    def _fail(self, code: int, message: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first, or process 0 is gone
            _put("failed", (code, message), again=False)

    def _run(self) -> None:
        client, beat = _client(), 0
        while not self._over.wait(_BEAT_S):
            beat += 1
            try:
                _put(f"beat/{self._cluster.process_id}", beat)
                if self._cluster.process_id == 0:
                    self._look_for_lost(dict(client.key_value_dir_get(_PREFIX + "beat/")))
                failed = client.key_value_try_get(_PREFIX + "failed")
            except Exception:  # nobody failed, or process 0 is gone and the service's own thread ends this process
                continue
            if not self._failed:  # else this process is ending by itself
                code, message = json.loads(failed)
                bar_ends = "" if self._cluster.process_id else "\n"
                print(f"{bar_ends}error: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
                self._linger()
                os._exit(code)

    def _look_for_lost(self, beats: dict[str, str]) -> None:
        now = time.monotonic()
        for process in range(self._cluster.num_processes):
            beat = beats.get(f"{_PREFIX}beat/{process}", "")
            if self._seen.get(process, (None, now))[0] != beat:
                self._seen[process] = beat, now
            elif now - self._seen[process][1] > _LOST_S:
                self._fail(2, f"process {process} is gone; {_GO_ON}")
