"""One training by several processes: how they find each other, exchange values and end.

`jax.distributed` connects them and ends all when one is lost. A lone process starts none of this, and every function
here then returns at once.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from medgan_jax.errors import UserError, reason_of

_JOIN_S = 120  # the processes of one training start within so many seconds of each other
_HEARTBEAT_S = 30  # a process that is silent for so long counts as lost
_PEER_LOST = re.compile(r"gloo|nccl|unavailable|aborted|cancelled|connection|coordination", re.IGNORECASE)
_BLOCK = 1024  # messages are filled up to a multiple of so many bytes: each size is compiled once


def find_cluster(coordinator: str | None, num_processes: int | None, process_id: int | None) -> dict[str, Any] | None:
    """The cluster that the flags describe, or else the environment.

    The environment is that of JAX (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), of torchrun
    (MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK), or what JAX finds itself: srun, Open MPI, Cloud TPU, GKE.

    Args:
      coordinator: --coordinator.
      num_processes: --num_processes.
      process_id: --process_id.

    Returns:
      Arguments for `jax.distributed.initialize`, none where JAX finds them itself; None for a lone process.

    Raises:
      UserError: they do not fit together.
    """
    flags = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    if any(value is not None for value in flags.values()):
        return _checked(flags)
    names: tuple[str, ...] = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if any(os.environ.get(name) for name in names):
        return _checked({name: os.environ.get(name) or None for name in names})
    address, port, size, rank = map(os.environ.get, ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"))
    if address and port and size and rank:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and port.isdecimal():
            port = str(int(port) + 1)  # torchrun itself listens on MASTER_PORT
        cluster = _checked({"MASTER_ADDR:MASTER_PORT": f"{address}:{port}", "WORLD_SIZE": size, "RANK": rank})
        local = os.environ.get("LOCAL_RANK", "")
        return cluster and cluster | ({"local_device_ids": int(local)} if local.isdecimal() else {})
    # A batch script has SLURM's other variables too; only in a step that srun started are there other processes.
    sizes = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    several = any(size.isdecimal() and int(size) > 1 for size in sizes)
    may_be_tpu = importlib.util.find_spec("libtpu") is not None  # JAX asks the machine whether there are others
    return {} if several or may_be_tpu else None


def _checked(values: dict[str, Any]) -> dict[str, Any] | None:
    """From the address, the number and the id, each under the name by which the user gave it."""
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing; give all of {', '.join(values)}, or none")
    (address_name, address), (number_name, number), (id_name, index) = values.items()
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
        raise UserError(f"{address_name}={address}: must be HOST:PORT of process 0, such as node0:5555")
    if number == 1:
        return None
    return {
        "coordinator_address": str(address),
        "num_processes": number,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def joined(cluster: dict[str, Any] | None, *, timeout_s: float = _JOIN_S) -> Iterator[None]:
    """Connects the processes of a training, for as long as it lasts.

    When one is lost or ends with an error, the others end too: with a UserError where they wait for its numbers,
    else by JAX, which aborts the process (exit code 134) when it has missed heartbeats for about 30 s. After an
    error the caller must leave by os._exit: an ordinary exit waits for processes that may be gone.

    Args:
      cluster: of `find_cluster`.
      timeout_s: how long to wait for the others at the start, in seconds.

    Raises:
      UserError: the others cannot be reached, or one of them is gone.
    """
    if cluster is None or not _connect(cluster, timeout_s):
        yield
        return
    if not is_leader():
        logging.getLogger("medgan_jax").setLevel(logging.ERROR)  # process 0 logs it
    try:
        yield
        jax.distributed.shutdown()  # waits for the others
    except Exception as error:
        cause = error.__cause__ or error  # of a save that failed, too
        if isinstance(cause, UserError | OSError) or not _PEER_LOST.search(str(cause)):
            raise
        raise UserError(
            f"another process is gone ({str(cause).splitlines()[0][:120]}); see what it printed, and start all "
            "processes again to go on from what was saved"
        ) from error


def _connect(cluster: dict[str, Any], timeout_s: float) -> bool:
    """Whether there are others. JAX would wait for them, and abort the process where they do not come."""
    address = cluster.get("coordinator_address", "the address that JAX found")
    if cluster.get("process_id") == 0:
        port = int(address.rpartition(":")[2])
        try:
            with socket.create_server(("", port)):  # JAX would share the port with another training
                pass
        except OSError as error:
            raise UserError(f"port {port} of {address}: {reason_of(error)}; give another") from error
    failure: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                **cluster,
                initialization_timeout=int(timeout_s) + 60,  # later than the line below
                heartbeat_timeout_seconds=_HEARTBEAT_S,
            )
        except Exception as error:
            failure.append(error)

    connecting = threading.Thread(target=connect, daemon=True)  # which this one can stop waiting for
    connecting.start()
    connecting.join(timeout_s)
    if not cluster and failure and isinstance(failure[0], ValueError):
        return False  # JAX found no cluster
    if connecting.is_alive() or failure:
        reason = f" ({str(failure[0]).splitlines()[0][:120]})" if failure else ""
        raise UserError(
            f"not all processes of this training met at {address} within {timeout_s:g} s{reason}; start all of them, "
            "and check that the others can reach this address of process 0"
        )
    return True


def is_leader() -> bool:
    """Whether this is the process that writes files and prints: process 0."""
    return jax.process_index() == 0


def from_leader(value: Any) -> Any:
    """What process 0 gives here, anything JSON-able, on all processes; each must come here, in the same order."""
    if jax.process_count() == 1:
        return value
    message = json.dumps(value).encode() if is_leader() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    filled = message.ljust(-(-length // _BLOCK) * _BLOCK, b"\0")
    received = multihost_utils.broadcast_one_to_all(np.frombuffer(filled, np.uint8))
    return json.loads(received.tobytes()[:length])


def agree(count: int, caught: int) -> tuple[int, int]:
    """Process 0's `count`, and the first number other than 0 among `caught`, the signals that processes caught."""
    if jax.process_count() == 1:
        return count, caught
    counts, signals = multihost_utils.process_allgather(np.array([count, caught], np.int32)).T
    return int(counts[0]), int(next(filter(None, signals), 0))
