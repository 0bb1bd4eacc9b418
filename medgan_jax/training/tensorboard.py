"""Logs for TensorBoard, without TensorFlow.

Of tensorboardX only the formats are used. Its writer has a thread, which a full disk ends without a word, whereupon the
training waits for it for good. Here a record is with the system once its method returns, so a process that is killed
loses none, at worst the end of the one it was writing, which TensorBoard passes over.
"""

import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from medgan_jax.errors import naming
from medgan_jax.images import encode_png

_GROUPS = (
    ("loss_", "losses/"), ("score_", "scores/"), ("grad_norm_", "gradient_norms/"), ("norms_", "spectral_norms/"),
)  # fmt: skip
_PLAIN = ("epoch", "images_per_s")


class TensorBoard:
    """One file of events. A training that is continued, or goes back, begins another in the same folder."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Begins a file, by which TensorBoard forgets what earlier files tell of later steps.

        Args:
          folder: for the files; made when missing.
          first_step: where the training stands. At 0 all is forgotten, since its pictures are written again too.

        Raises:
          OSError: the folder cannot be written.
        """
        from tensorboardX.proto import event_pb2  # a quarter of a second, and not wanted by all

        folder.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)  # TensorBoard reads files in the order of their names
        self._path = folder / f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}"
        with naming(self._path):
            self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115
        self._write(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step + 1 if first_step else 0, session_log=start)

    def line(self, line: dict[str, Any]) -> None:
        """Writes the numbers of a line of metrics.jsonl, evaluations.jsonl or health.jsonl, lists layer by layer."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars: dict[str, float] = {}
        for name, value in line.items():
            tag = _tag(name, otherwise="evaluation/" if "best_by" in line else "health/")
            if isinstance(value, list):
                scalars |= {f"{tag}_{index}": number for index, number in enumerate(value)}
            elif isinstance(value, int | float) and name != "step":
                scalars[tag] = value
        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in scalars.items()]
        self._write(step=line["step"], summary=Summary(value=values))

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Writes a uint8 (H, W, 1 or 3) picture."""
        from tensorboardX.proto.summary_pb2 import Summary

        height, width, channels = image.shape
        picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encode_png(image))
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, image=picture)]))

    def text(self, name: str, step: int, text: str) -> None:
        """Writes a text, which TensorBoard shows as Markdown."""
        from tensorboardX import summary

        self._write(step=step, summary=summary.text(name, text))

    def close(self) -> None:
        """Writes no more."""
        self._file.close()

    def _write(self, *, step: int = 0, **what: Any) -> None:
        """One record: the length and the event, each with its checksum."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), step=step, **what).SerializeToString()
        length = struct.pack("<Q", len(event))
        parts = (part + struct.pack("<I", masked_crc32c(part)) for part in (length, event))
        record = memoryview(b"".join(parts))
        with naming(self._path):
            while record:  # where the disk fills up a part is taken, and the next call says so
                record = record[self._file.write(record) :]


def _tag(name: str, *, otherwise: str) -> str:
    for prefix, group in _GROUPS:
        if name.startswith(prefix):
            return group + name.removeprefix(prefix)
    return name if name in _PLAIN else otherwise + name
