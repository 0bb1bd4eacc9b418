"""Logs for TensorBoard, without TensorFlow.

The formats are tensorboardX's. The writer is ours, since tensorboardX writes in a thread that a full disk ends without
an error, whereupon the training blocks for ever. Here each record is written when its method returns, and a full disk
raises. A killed process loses at most the record that it was writing, which TensorBoard skips.
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
_UNGROUPED = ("epoch", "images_per_s")


class TensorBoard:
    """Writes one event file. A run that is resumed or rolled back opens another in the same folder."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Opens a file. TensorBoard then drops what earlier files say of steps after `first_step`.

        Args:
          folder: for the files; made when missing.
          first_step: the step from which the run goes on; -1 where it starts, as step 0 is logged too.

        Raises:
          OSError: the folder cannot be written.
        """
        from tensorboardX.proto import event_pb2  # takes 0.25 s, and not every run needs it

        folder.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)  # TensorBoard reads files in the order of their names
        self._path = folder / f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}"
        with naming(self._path):
            self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115
        self._write(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step + 1, session_log=start)

    def add_scalars(self, line: dict[str, Any]) -> None:
        """Writes the numbers of a line of metrics.jsonl, evaluations.jsonl or health.jsonl; a list as one scalar each.

        Raises:
          OSError: the disk is full; so for the methods below.
        """
        from tensorboardX.proto.summary_pb2 import Summary

        scalars: dict[str, float] = {}
        for name, value in line.items():
            tag = _tag(name, default_group="evaluation/" if "best_by" in line else "health/")
            if isinstance(value, list):
                scalars |= {f"{tag}_{index}": number for index, number in enumerate(value)}
            elif isinstance(value, int | float) and name != "step":
                scalars[tag] = value
        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in scalars.items()]
        self._write(step=line["step"], summary=Summary(value=values))

    def add_image(self, tag: str, step: int, image: np.ndarray) -> None:
        """Writes an image, uint8 (H, W, 1 or 3)."""
        from tensorboardX.proto.summary_pb2 import Summary

        height, width, channels = image.shape
        encoded = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encode_png(image))
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=encoded)]))

    def add_text(self, tag: str, step: int, text: str) -> None:
        """Writes a text, which TensorBoard shows as Markdown."""
        from tensorboardX import summary

        self._write(step=step, summary=summary.text(tag, text))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, *, step: int = 0, **fields: Any) -> None:
        """Writes one record: length, checksum of the length, event, checksum of the event."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), step=step, **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        parts = (part + struct.pack("<I", masked_crc32c(part)) for part in (length, event))
        record = memoryview(b"".join(parts))
        with naming(self._path):
            while record:  # a disk that fills up takes a part; the next call then raises
                record = record[self._file.write(record) :]


def _tag(name: str, *, default_group: str) -> str:
    for prefix, group in _GROUPS:
        if name.startswith(prefix):
            return group + name.removeprefix(prefix)
    return name if name in _UNGROUPED else default_group + name
