"""Arrays from PyTorch's files, without PyTorch and without running what the files say, and from NumPy's `.npz`.

`torch.save` writes a pickle, a program that builds objects, and beside it the numbers of the tensors ("storages"),
since version 1.6 within a zip archive. Python's unpickler would run whatever the program names. Here an interpreter of
the few instructions that a state dict needs reads it: names are compared with a list and never imported, nothing is
called, and tensors are descriptions until their storages have been checked.
"""

import io
import math
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medgan_jax.errors import UserError, quoted, reason_of

MAX_BYTES = 2 * 2**30  # of a file and of all its arrays; the largest published classifiers take a quarter
MAX_RATIO = 100  # of what comes out of a file to its size
MAX_PICKLE_BYTES = 2 * 2**20  # of the description of the tensors, some 200 each
MAX_COPIED_ITEMS = MAX_PICKLE_BYTES // 8  # an item of an OrderedDict takes more bytes, but a list can be used again
MAX_RECORDS = 20_000  # in an archive
MAX_DIMENSIONS = 16

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before 1.6
_MARKED = {b"PK\x03\x04", b"PK\x05\x06"}  # how zip archives begin, the second if empty
_WRAPPERS = ("state_dict", "model")
_COPY_AGAIN = "copy or download it again"
_SAVE_STATE = "save the state dict alone, torch.save(model.state_dict(), file), and give that file"

_DTYPES = {  # as stored
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2",
    "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
    "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool": "u1",
}  # fmt: skip
_STORAGES = {
    "torch DoubleStorage": "float64", "torch FloatStorage": "float32", "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16", "torch LongStorage": "int64", "torch IntStorage": "int32",
    "torch ShortStorage": "int16", "torch CharStorage": "int8", "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool", "torch UntypedStorage": "uint8", "torch.storage UntypedStorage": "uint8",
}  # fmt: skip


class _Known(StrEnum):
    """The functions that a state dict calls, as "module name"."""

    ORDERED_DICT = "collections OrderedDict"
    SIZE = "torch Size"
    PARAMETER = "torch._utils _rebuild_parameter"
    OLD_TENSOR = "torch._utils _rebuild_tensor"  # before 0.4
    TENSOR = "torch._utils _rebuild_tensor_v2"
    TYPED_TENSOR = "torch._utils _rebuild_tensor_v3"


_NAMES = {*_Known, *_STORAGES, *(f"torch {name}" for name in _DTYPES)}


class _Refused(Exception):
    """A reason and a remedy, to follow the file's name."""

    def __init__(self, reason: str, remedy: str = _COPY_AGAIN) -> None:
        super().__init__(f"{reason}; {remedy}")


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle asks for, as "module name"; only ever compared."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """Numbers in one piece, elsewhere in the file."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in elements."""

    storage: _Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads what `torch.save` wrote of a state dict.

    In the zip format (PyTorch 1.6 and later) or the one before it, and either as the file itself or as the one member,
    `.pth` or `.pt`, of a zip archive. A state dict under the key `state_dict` or `model` of a checkpoint is found.
    Nothing in the file is executed; what is not a dict of tensors is refused.

    Args:
      path: the file, at most `MAX_BYTES`.

    Returns:
      Name to array, contiguous and of its own memory. Types stay, but bfloat16 becomes float32.

    Raises:
      UserError: the file cannot be read, is damaged, or holds anything else.
    """
    return _read(path, _state_dict)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an `.npz` file of numbers, or a state dict; which it is, the content says.

    Args:
      path: the file, at most `MAX_BYTES`.

    Returns:
      Name to array, see `read_state_dict`.

    Raises:
      UserError: the file cannot be read, is damaged, or holds anything else, such as pickled objects.
    """
    return _read(path, lambda data: _npz(data) if _is_npz(data) else _state_dict(data))


def _read(path: Path, parse: Callable[[bytes], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise _Refused(f"of {size:,} bytes, limit {MAX_BYTES:,}", _SAVE_STATE)
            data = file.read(size)
        if not data:
            raise _Refused("empty file")
        return parse(data)
    except OSError as error:
        raise UserError(f"{path}: {reason_of(error)}; check the path and its permissions") from error
    except _Refused as refused:
        raise UserError(f"{path}: {refused}") from refused


class _Archive:
    """A zip archive whose records have been checked as far as its directory tells.

    Attributes:
      names: of the records, folders left out.
    """

    def __init__(self, data: bytes) -> None:
        if data.count(b"PK\x01\x02") > MAX_RECORDS:  # before zipfile makes an object of each
            raise _Refused(f"an archive of more than {MAX_RECORDS} records", _SAVE_STATE)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except Exception as error:  # on damaged bytes zipfile raises nearly anything
            raise _Refused("damaged or incomplete zip archive") from error
        records = [record for record in self._zip.infolist() if not record.filename.endswith("/")]
        self.names = [record.filename for record in records]
        if len(set(self.names)) < len(self.names):
            raise _Refused("an archive with two records of one name")
        for record in records:
            parts = re.split(r"[/\\]", record.filename)
            if not parts[0] or ".." in parts or ":" in parts[0]:
                raise _Refused(f"a record leads out of the archive: {quoted(record.filename)}")
            if record.flag_bits & 1 or record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _Refused(f"record {quoted(record.filename)} is encrypted or in a rare compression")
        _check_unfolded(sum(record.file_size for record in records), len(data))

    def read(self, name: str) -> bytes:
        """The bytes of one record."""
        try:
            size = self._zip.getinfo(name).file_size
            with self._zip.open(name) as file:
                data = file.read(size)  # unlike read(), unpacks no more than that; compares the checksum
        except KeyError:
            raise _Refused(f"record {quoted(name)} is missing") from None
        except Exception as error:
            raise _Refused(f"record {quoted(name)} is damaged or incomplete") from error
        if len(data) < size:
            raise _Refused(f"record {quoted(name)} is incomplete")
        return data


def _check_unfolded(count: int, file_size: int) -> None:
    """Refuses `count` bytes out of a file that is too small to hold them honestly."""
    limit = min(MAX_BYTES, MAX_RATIO * file_size)
    if count > limit:
        raise _Refused(f"unfolds to {count:,} bytes, limit {limit:,} for a file of its size")


def _is_npz(data: bytes) -> bool:
    if data[:4] not in _MARKED:
        return False
    names = _Archive(data).names
    return bool(names) and all(name.endswith(".npy") for name in names)


def _npz(data: bytes) -> dict[str, np.ndarray]:
    archive = _Archive(data)
    return {name.removesuffix(".npy"): _npy(name, archive.read(name)) for name in archive.names}


def _npy(name: str, data: bytes) -> np.ndarray:
    """One array in NumPy's format. `numpy.load` would first make room for whatever the header asks."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = read_header[version](file)
    except Exception as error:  # the header is a Python literal
        raise _Refused(f"array {quoted(name)} is damaged") from error
    if dtype.kind not in "fiub":
        raise _Refused(f"array {quoted(name)} is of {dtype}, not of numbers", "save it as numbers")
    if not _is_shape(shape) or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise _Refused(f"array {quoted(name)} is damaged: its size is not that of its shape")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    array = flat.reshape(shape, order="F" if by_columns else "C")
    return np.array(array, dtype.newbyteorder("="), order="C")


def _state_dict(data: bytes, *, within: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a file in any of its forms; `within`: itself a member of an archive."""
    if data[:4] not in _MARKED:
        content, storages = _before_1_6(data)
        return _arrays(content, storages.get, len(data))
    archive = _Archive(data)
    roots = [name.split("/")[0] for name in archive.names if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) == 1:
        return _since_1_6(archive, roots[0], len(data))
    members = [name for name in archive.names if not name.startswith("__MACOSX/")]
    if not within and len(members) == 1 and members[0].endswith((".pth", ".pt")):
        return _state_dict(archive.read(members[0]), within=True)
    raise _Refused("an archive, but neither of PyTorch nor of a single .pth file", "unpack it and give the right file")


def _since_1_6(archive: _Archive, root: str, file_size: int) -> dict[str, np.ndarray]:
    if f"{root}/byteorder" in archive.names and archive.read(f"{root}/byteorder") != b"little":
        raise _Refused("its numbers are not little-endian", "save it again on another machine")
    content = _unpickle(io.BytesIO(archive.read(f"{root}/data.pkl")), {})
    return _arrays(content, lambda key: archive.read(f"{root}/data/{key}"), file_size)


def _before_1_6(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """The content and the storages of a file in which five pickles and the storages follow each other."""
    file = io.BytesIO(data)
    declared: dict[str, _Storage] = {}
    try:
        magic = _unpickle(file, {})
    except _Refused as error:
        raise _Refused("no file of PyTorch", "give a state dict as torch.save writes it") from error
    if magic != _MAGIC or _unpickle(file, {}) != _PROTOCOL:
        raise _Refused("no file of PyTorch, or of a version before 0.1.10", _SAVE_STATE)
    system = _unpickle(file, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("its numbers are not little-endian", "save it again on another machine")
    content = _unpickle(file, declared)
    keys = _unpickle(file, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in declared for key in keys):
        raise _Refused("its list of storages is damaged")
    storages = {}
    for key in keys:
        count = file.read(8)
        if len(count) < 8 or struct.unpack("<q", count)[0] != declared[key].count:
            raise _Refused(f"storage {quoted(key)} is damaged or incomplete")
        storages[key] = file.read(declared[key].count * np.dtype(_DTYPES[declared[key].dtype]).itemsize)
    return content, storages


def _arrays(content: Any, storage: Callable[[str], bytes | None], file_size: int) -> dict[str, np.ndarray]:
    """Makes arrays of the tensors in `content`, whose storages `storage` gives by key."""
    if isinstance(content, dict) and not any(isinstance(value, _Tensor) for value in content.values()):
        wrapped = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
        content = wrapped[0] if wrapped else content
    if not isinstance(content, dict) or not content:
        raise _Refused("holds no state dict", _SAVE_STATE)
    total = 0
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Refused(f"its entry {quoted(str(name))} is no tensor", _SAVE_STATE)
        total += math.prod(value.size) * np.dtype(_DTYPES[value.dtype]).itemsize
        _check_unfolded(total, file_size)
    arrays = {}
    numbers: dict[str, np.ndarray] = {}
    for name, tensor in content.items():
        key, dtype, count = tensor.storage.key, tensor.storage.dtype, tensor.storage.count
        if key not in numbers:
            data = storage(key)
            if data is None or len(data) != count * np.dtype(_DTYPES[dtype]).itemsize:
                raise _Refused(f"storage {quoted(key)} of {quoted(name)} is incomplete, or not of the size declared")
            numbers[key] = np.frombuffer(data, np.uint8)
        arrays[name] = _view(name, tensor, numbers[key])
    return arrays


def _view(name: str, tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Copies a tensor from the bytes of its storage."""
    stored = np.dtype("<" + _DTYPES[tensor.dtype])
    if 0 in tensor.size:
        array = np.zeros(tensor.size, stored)
    else:
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
        if last >= numbers.size // stored.itemsize:
            raise _Refused(f"tensor {quoted(name)} reaches beyond its storage")
        numbers = numbers[: numbers.size // stored.itemsize * stored.itemsize].view(stored)[tensor.offset :]
        steps = [step * stored.itemsize for step in tensor.stride]
        array = np.array(np.lib.stride_tricks.as_strided(numbers, tensor.size, steps), order="C")
    if tensor.dtype == "bfloat16":  # the upper half of float32
        return np.asarray(array.astype(np.uint32) << 16, np.uint32).view(np.float32)
    return np.asarray(array, bool if tensor.dtype == "bool" else stored.newbyteorder("="))


def _unpickle(file: BinaryIO, declared: dict[str, _Storage]) -> Any:
    """Reads one pickle, executing nothing.

    Args:
      file: stands at the pickle, and just after it afterwards.
      declared: receives the storages that the pickle speaks of, by key.

    Returns:
      What it describes, of dicts, lists, tuples, numbers, strings, None and `_Tensor`.
    """
    machine, start = _Machine(declared), file.tell()
    try:
        for opcode, argument, position in pickletools.genops(file):
            if position - start > MAX_PICKLE_BYTES:
                raise _Refused("its description of the tensors is too long", _SAVE_STATE)
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except _Refused:
        raise
    except Exception as error:  # pickletools on damaged bytes, and instructions that lack their operands
        raise _Refused("damaged or incomplete") from error
    raise _Refused("damaged or incomplete")


class _Machine:
    """The pickle instructions of a state dict, of any protocol. All others are refused."""

    def __init__(self, declared: dict[str, _Storage]) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark
        self._memo: dict[int, Any] = {}
        self._declared = declared
        self._copied = 0  # items of lists

    def step(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "MARK":
                self._below.append(stack)
                self.stack = []
            case "TUPLE":
                self._drop_mark().append(tuple(stack))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else stack
                target = self.stack[-1] if name == "APPEND" else self._drop_mark()[-1]
                _expect(isinstance(target, list))
                target.extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else stack
                target = self.stack[-1] if name == "SETITEM" else self._drop_mark()[-1]
                _expect(isinstance(target, dict))
                target.update(_checked_keys(zip(items[::2], items[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "STACK_GLOBAL":
                function, module = stack.pop(), stack.pop()
                _expect(isinstance(function, str) and isinstance(module, str))
                stack.append(_known(f"{module} {function}"))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                _expect(isinstance(arguments, tuple) and isinstance(function, _Name))
                if arguments and isinstance(arguments[0], list):
                    self._copied += len(arguments[0])
                    if self._copied > MAX_COPIED_ITEMS:
                        raise _Refused("its description of the tensors unfolds to too much", _SAVE_STATE)
                stack.append(_called(function.text, arguments))
            case "BUILD":  # an OrderedDict's attributes: PyTorch's version numbers
                stack.pop()
                _expect(isinstance(stack[-1], dict))
            case _:
                raise _Refused(f"not only tensors: it has the pickle instruction {name}", _SAVE_STATE)

    def _drop_mark(self) -> list[Any]:
        self.stack = self._below.pop()
        return self.stack

    def _storage(self, reference: Any) -> _Storage:
        """The storage of `("storage", type, key, device, count)`; older files add a None."""
        match reference:
            case ("storage", _Name(kind), str(key), _, int(count)) | (
                "storage", _Name(kind), str(key), _, int(count), None
            ) if kind in _STORAGES and 0 <= count <= MAX_BYTES:  # fmt: skip
                storage = _Storage(key, _STORAGES[kind], count)
                _expect(self._declared.setdefault(key, storage) == storage)
                return storage
        raise _Refused("it refers to what is no storage", _SAVE_STATE)


def _expect(condition: bool) -> None:
    if not condition:
        raise _Refused("not only tensors, or damaged", _SAVE_STATE)


def _checked_keys(items: Iterable[Sequence[Any]]) -> Iterator[tuple[str | int, Any]]:
    """Items of a dict as they are, if their keys cannot be made to collide."""
    for key, value in items:
        _expect(isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**31))
        yield key, value


def _known(name: str) -> _Name:
    if name not in _NAMES:
        raise _Refused(f"not only tensors: it holds {quoted(name.replace(' ', '.'))}", _SAVE_STATE)
    return _Name(name)


def _called(function: str, arguments: tuple) -> Any:
    """What one of the known functions would make of its arguments."""
    match (function, arguments):
        case (_Known.ORDERED_DICT, ()):
            return {}
        case (_Known.ORDERED_DICT, (list(items),)):
            return dict(_checked_keys(items))
        case (_Known.SIZE, (tuple(size),)):
            return size
        case (_Known.PARAMETER, (_Tensor() as tensor, _, _)):
            return tensor
        case (_Known.OLD_TENSOR, (_Storage() as storage, offset, size, stride)):
            return _tensor(storage, storage.dtype, offset, size, stride)
        case (_Known.TENSOR, (_Storage() as storage, offset, size, stride, _, _, *_)):
            return _tensor(storage, storage.dtype, offset, size, stride)
        case (_Known.TYPED_TENSOR, (_Storage() as storage, offset, size, stride, _, _, _Name(dtype), *_)):
            return _tensor(storage, dtype.removeprefix("torch "), offset, size, stride)
    raise _Refused(f"not only tensors, or damaged: a call of {quoted(function.replace(' ', '.'))}", _SAVE_STATE)


def _tensor(storage: _Storage, dtype: str, offset: Any, size: Any, stride: Any) -> _Tensor:
    steps = (offset, *stride)
    _expect(dtype in _DTYPES and _is_shape(size) and len(stride) == len(size))
    _expect(all(isinstance(step, int) and 0 <= step <= MAX_BYTES for step in steps))
    return _Tensor(storage, dtype, offset, tuple(size), tuple(stride))


def _is_shape(shape: Any) -> bool:
    """Whether these can be sizes, those along an array of no elements included."""
    return (
        isinstance(shape, tuple)
        and len(shape) <= MAX_DIMENSIONS
        and all(isinstance(size, int) and 0 <= size <= MAX_BYTES for size in shape)
        and math.prod(max(size, 1) for size in shape) <= MAX_BYTES
    )
