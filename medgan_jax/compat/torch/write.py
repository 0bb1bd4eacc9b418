"""Writes arrays to a file that `torch.load(weights_only=True)` reads, without PyTorch; `torch_files` reads it back.

As `.safetensors`, by that library, or in the zip format of PyTorch 1.6 and later: a pickle, `data.pkl`, that describes
the tensors, and a record of numbers for each. The few instructions of the pickle are written by hand, since Python's
pickler would look for the classes.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from medgan_jax.files import replace_file

_ROOT = "archive"
_ALIGNMENT = 64  # bytes, of numbers within the file, as PyTorch maps them into memory
_HEADER = 30  # bytes, of a zip record before its name
_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def write_state_dict(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict, whole or not at all, in place of the file at `path`. The same arrays make the same bytes.

    A name that ends in .safetensors asks for that format.

    Raises ValueError when an array is neither float32 nor int64, OSError when the file cannot be written.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _STORAGES:
            raise ValueError(f"{name} is of {array.dtype}; a state dict is written of {' and '.join(_STORAGES)}")
    if is_safetensors(path):
        contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
        replace_file(path, safetensors.numpy.save(contiguous, {"format": "pt"}))
        return
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:

        def add(name: str, data: bytes) -> None:
            record = zipfile.ZipInfo(f"{_ROOT}/{name}", (1980, 1, 1, 0, 0, 0))
            record.create_system = 0  # else it depends on the machine's
            start = file.tell() + _HEADER + len(record.filename) + 4
            padding = -start % _ALIGNMENT
            record.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding  # an extra field that nobody reads
            archive.writestr(record, data)

        add("data.pkl", _description(arrays))
        add("byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            add(f"data/{i}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        add("version", b"3\n")
    replace_file(path, file.getvalue())


def is_safetensors(path: Path) -> bool:
    """Whether a file of this name is written as safetensors."""
    return path.suffix.lower() == ".safetensors"


def _description(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle: an OrderedDict, and calls that make tensors of storages."""
    empty = b"ccollections\nOrderedDict\n)R"
    items = []
    for i, (name, array) in enumerate(arrays.items()):
        storage = b"ctorch\n" + _STORAGES[array.dtype.name].encode() + b"\n"
        reference = _tuple(_text("storage"), storage, _text(str(i)), _text("cpu"), _number(array.size)) + b"Q"
        strides = (math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        arguments = _tuple(
            reference, _number(0), _tuple(*map(_number, array.shape)), _tuple(*map(_number, strides)), b"\x89", empty
        )
        items.append(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R")
    return b"\x80\x02" + empty + b"(" + b"".join(items) + b"u."


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
