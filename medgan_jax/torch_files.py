"""Reads the tensors of PyTorch's files without PyTorch, of `.safetensors`, and the arrays of NumPy's `.npz` files.

`torch.save` writes a pickle, which describes the tensors, and their numbers ("storages"), since PyTorch 1.6 within a
zip archive. A pickle is a program: it names functions, and Python's unpickler calls them. Here it finds only those of
`_GLOBALS`, which make descriptions of tensors. That keeps code from running, but not the unpickler from crashing or
from filling the memory, so `_checked_instructions` goes through the pickle first.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
import safetensors

from medgan_jax.errors import UserError, abbreviate, quoted, reason_of, stand_in

Content = TypeVar("Content")

MAX_BYTES = 2 * 2**30  # of a file and of all its arrays; the largest published classifiers take a quarter
MAX_RATIO = 100  # of what comes out of a file to its size
MAX_PICKLE_BYTES = 2 * 2**20  # of the description of the tensors, some 200 each
MAX_DIMENSIONS = 16

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before 1.6
_ZIP_MARKS = (b"PK\x03\x04", b"PK\x05\x06")  # the second of an empty archive
_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # how their files are called
_OTHERS = {  # files that are often given in their place, by how they begin
    b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive", b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file, as Keras writes it",
}  # fmt: skip
_BIG_ENDIAN = "its numbers are not little-endian", "save it again on another machine"
_COPY_AGAIN = "copy or download it again"
_SAVE_STATE = "save the state dict alone, torch.save(model.state_dict(), file), and give that file"


class _Refused(Exception):
    """A reason and a remedy, to follow the file's name."""

    def __init__(self, reason: str, remedy: str = _COPY_AGAIN) -> None:
        super().__init__(f"{reason}; {remedy}")


def read_state_dicts(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Reads all state dicts of a file that `torch.save` wrote: of each, name to array.

    In the zip format (PyTorch 1.6 and later) or the one before it; or `.safetensors`; either as the file itself or as
    the one file of weights in a zip archive. Arrays are contiguous and of their own memory. Types stay, but bfloat16
    becomes float32. Nothing in the file is executed.

    Returns:
      State dicts by their key: "" where the file itself is one, else where it lies in the checkpoint, such as "netG" or
      "ema.shadow". What an optimizer keeps is left out.

    Raises:
      UserError: it cannot be read, is larger than `MAX_BYTES`, damaged, holds no dict of tensors, or other objects.
    """
    return _read(path, _state_dicts)


def read_arrays(path: Path, *, remedy: str = "") -> dict[str, np.ndarray]:
    """Reads an `.npz` file of numbers, or a state dict; which it is, the content says. See `read_state_dicts`.

    Of several state dicts it is that under the key `state_dict` or `model`. `remedy` says what else to give; an error
    ends in it.
    """
    try:
        return _read(path, lambda data: _npz(data) if _is_npz(data) else _one(_state_dicts(data)))
    except UserError as error:
        raise UserError(f"{error}, or {remedy}" if remedy else str(error)) from error


def checked_array(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], *, path: Path, remedy: str
) -> np.ndarray:
    """One array of a network's weights as float64.

    Raises:
      UserError: it is missing, of another shape (with `remedy`), not finite, or a negative variance.
    """
    found = arrays[name].shape if name in arrays else "missing"
    if found != shape:
        raise UserError(f"{path}: {name} should be of shape {shape}, and is {found}; {remedy}")
    array = arrays[name].astype(np.float64)
    if not np.isfinite(array).all() or (name.endswith("running_var") and array.min() < 0):
        raise UserError(f"{path}: {name} is not finite, or negative; {_COPY_AGAIN}")
    return array


def _read(path: Path, parse: Callable[[bytes], Content]) -> Content:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= MAX_BYTES else b""
    except OSError as error:
        raise UserError(f"{path}: {reason_of(error)}; check the path and its permissions") from error
    try:
        if size > MAX_BYTES:
            raise _Refused(f"of {size:,} bytes, limit {MAX_BYTES:,}", _SAVE_STATE)
        if not data:
            raise _Refused("empty file")
        _check_kind(data)
        return parse(data)
    except _Refused as refused:
        raise UserError(f"{path}: {refused}") from refused
    except Exception as error:  # on damaged bytes pickle, zipfile and NumPy raise nearly anything
        raise UserError(f"{path}: damaged, incomplete, or not only tensors; {_COPY_AGAIN}") from error


def _check_kind(data: bytes) -> None:
    """Raises _Refused where the file is of another kind, which it then says."""
    if data[:99].lstrip().startswith(b"{") and b'"weight_map"' in data[:MAX_PICKLE_BYTES]:
        raise _Refused("is the index of a network in several files", "save it in one file, and give that")
    if found := stand_in(data):
        raise _Refused(*f"is {found}".split("; ", 1))
    kind = next((name for start, name in _OTHERS.items() if data.startswith(start)), None)
    if kind or data[257:262] == b"ustar":
        remedy = "unpack it and give the file within" if "HDF5" not in (kind or "") else _SAVE_STATE
        raise _Refused(f"is {kind or 'a tar archive'}", remedy)


def _one(found: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The only state dict, or that under one of the usual keys."""
    key = next((key for key in ("state_dict", "model") if key in found), next(iter(found)))
    if len(found) > 1 and key not in ("state_dict", "model"):
        raise _Refused(f"holds the state dicts {abbreviate([quoted(key) for key in found])}", _SAVE_STATE)
    return found[key]


def _is_npz(data: bytes) -> bool:
    if not data.startswith(_ZIP_MARKS):
        return False
    names = _names(_archive(data))
    return bool(names) and all(name.endswith(".npy") for name in names)


def _npz(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if not _is_of_macos(name)}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise _Refused(f"array {quoted(name)} is of {array.dtype}, not of numbers", "save it as numbers")
    return {name: np.array(array, array.dtype.newbyteorder("="), order="C") for name, array in arrays.items()}


def _state_dicts(data: bytes, *, nested: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a file in any of its forms; `nested`: it was itself within an archive."""
    if data[8:9] == b"{":  # after the length of the header
        return _safetensors(data)
    if not data.startswith(_ZIP_MARKS):
        return _state_dicts_before_1_6(data)
    archive = _archive(data)
    names = _names(archive)
    roots = [name.removesuffix("/data.pkl") for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) == 1:
        if f"{roots[0]}/byteorder" in names and _record(archive, f"{roots[0]}/byteorder") != b"little":
            raise _Refused(*_BIG_ENDIAN)
        content = _unpickled(io.BytesIO(_record(archive, f"{roots[0]}/data.pkl")), {})
        found = _tensors(content, len(data))
        keys = {tensor.storage.key for tensors in found.values() for tensor in tensors.values()}
        return _arrays(found, {key: _record(archive, f"{roots[0]}/data/{key}") for key in keys})
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    if not nested and len(weights) == 1:
        return _state_dicts(_record(archive, weights[0]), nested=True)
    holds = abbreviate([quoted(name) for name in weights or names], 2) or "nothing"
    raise _Refused(
        f"is an archive, but neither of PyTorch nor of a single .pth file: it holds {holds}",
        "unpack it and give the right file",
    )


def _safetensors(data: bytes) -> dict[str, dict[str, np.ndarray]]:
    try:
        views = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise _Refused(f"no whole .safetensors file ({' '.join(str(error).split())[:80]})") from error
    arrays = {}
    for name, view in sorted(views, key=lambda item: item[0]):  # they come in no order
        if view["dtype"] not in _SAFETENSORS:
            raise _Refused(f"its entry {quoted(name)} is of the type {view['dtype']}", "save it as float32")
        dtype = _DTYPES[_SAFETENSORS[view["dtype"]]]
        arrays[name] = _native(np.frombuffer(view["data"], dtype).reshape(view["shape"]))
    if not arrays:
        raise _Refused("holds no tensors", _SAVE_STATE)
    return {"": arrays}


def _state_dicts_before_1_6(data: bytes) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a file in which five pickles and the storages follow each other."""
    file = io.BytesIO(data)
    try:
        magic = _unpickled(file, {})
    except Exception as error:
        raise _Refused("no file of PyTorch", "give a state dict as torch.save writes it") from error
    if magic != _MAGIC or _unpickled(file, {}) != _PROTOCOL:
        raise _Refused("no file of PyTorch, or of a version before 0.1.10", _SAVE_STATE)
    if not _unpickled(file, {})["little_endian"]:
        raise _Refused(*_BIG_ENDIAN)
    declared: dict[str, _Storage] = {}
    found = _tensors(_unpickled(file, declared), len(data))
    stored = {}
    for key in _unpickled(file, {}):
        (length,) = struct.unpack("<q", file.read(8))
        if length != declared[key].length:
            raise _Refused(f"storage {quoted(key)} is not of the size declared")
        stored[key] = file.read(declared[key].num_bytes)
    return _arrays(found, stored)


def _archive(data: bytes) -> zipfile.ZipFile:
    """A zip archive that does not unfold to too much, and of compressions that can be unpacked piece by piece."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    for record in archive.infolist():
        if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refused(f"record {quoted(record.filename)} is in a rare compression")
    _check_unfolded(sum(record.file_size for record in archive.infolist()), len(data))
    return archive


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if not name.endswith("/") and not _is_of_macos(name)]


def _is_of_macos(name: str) -> bool:
    """Whether a record is what macOS puts beside each file of a zip archive."""
    *folders, file = name.split("/")
    return "__MACOSX" in folders or file.startswith("._")


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)  # read() would first unpack all, whatever size is declared


def _check_unfolded(count: int, file_size: int) -> None:
    """Refuses `count` bytes out of a file that is too small to hold them honestly."""
    limit = min(MAX_BYTES, MAX_RATIO * file_size)
    if count > limit:
        raise _Refused(f"unfolds to {count:,} bytes, limit {limit:,} for a file of its size")


class _Storage(NamedTuple):
    """Numbers in one piece, elsewhere in the file."""

    key: str
    dtype: np.dtype
    length: int

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensors(content: Any, file_size: int) -> dict[str, dict[str, _Tensor]]:
    """The state dicts in what was unpickled, by their keys."""
    if not isinstance(content, dict):
        raise _Refused("holds no state dict", _SAVE_STATE)
    found = dict(_dicts_of_tensors(content, (), set()))
    if not found:
        raise _Refused("holds no state dict", _SAVE_STATE)
    for tensors in found.values():
        for name, value in tensors.items():
            if not isinstance(name, str) or not isinstance(value, _Tensor):
                raise _Refused(f"its entry {quoted(str(name))} is no tensor", _SAVE_STATE)
    views = [tensor for tensors in found.values() for tensor in tensors.values()]
    _check_unfolded(sum(math.prod(tensor.size) * tensor.dtype.itemsize for tensor in views), file_size)
    return found


def _dicts_of_tensors(content: dict, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, dict]]:
    """Dicts with tensors and no such dict among their values: beside one, a tensor is no weight, but fixed noise."""
    if id(content) in seen or "param_groups" in content:  # the latter of an optimizer
        return
    seen.add(id(content))  # a pickle may have a dict hold itself
    inner = [
        item
        for key, value in content.items()
        if isinstance(value, dict)
        for item in _dicts_of_tensors(value, (*path, str(key)), seen)
    ]
    if not inner and any(isinstance(value, _Tensor) for value in content.values()):
        yield ".".join(path), content
    yield from inner


def _arrays(found: dict[str, dict[str, _Tensor]], stored: dict[str, bytes]) -> dict[str, dict[str, np.ndarray]]:
    """Copies the tensors from the bytes of their storages, by key."""
    return {key: {name: _copied(name, tensors[name], stored) for name in tensors} for key, tensors in found.items()}


def _copied(name: str, tensor: _Tensor, stored: dict[str, bytes]) -> np.ndarray:
    storage, dtype, offset, size, stride = tensor
    data = stored.get(storage.key, b"")
    if len(data) != storage.num_bytes:
        raise _Refused(f"the storage of {quoted(name)} is incomplete, or not of the size declared")
    flat = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
    steps = [step * dtype.itemsize for step in stride]
    return _native(flat[:0].reshape(size) if 0 in size else np.lib.stride_tricks.as_strided(flat[offset:], size, steps))


def _native(view: np.ndarray) -> np.ndarray:
    """A copy in the machine's byte order, bfloat16 as float32."""
    array = np.array(view, view.dtype.newbyteorder("="), order="C")
    if view.dtype == _DTYPES["bfloat16"]:
        return array.astype(np.float32)
    if view.dtype.kind == "b":
        return np.asarray(array.view(np.uint8) != 0)  # a damaged file may hold other bytes than 0 and 1
    return array


class _Dict(dict):
    """A dict with texts and small integers as keys."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        # Nested tuples can take years to hash or crash Python, and large integers can be made to collide.
        if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
            raise _Refused("not only tensors: a key is neither text nor a small number", _SAVE_STATE)
        super().__setitem__(key, value)


def _ordered_dict(items: list | None = None) -> _Dict:
    """An OrderedDict, with `items` as Python 2 wrote it."""
    result = _Dict()
    for key, value in items or ():
        result[key] = value
    if items:
        items.clear()  # else a pickle of two bytes a copy could have one list copied again and again
    return result


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, dtype: np.dtype | None = None) -> _Tensor:
    """A tensor that stays within its storage, whatever a pickle gives for the arguments."""
    dtype = storage.dtype if dtype is None else dtype
    if not len(size) == len(stride) <= MAX_DIMENSIONS or not all(
        type(n) is int and 0 <= n <= MAX_BYTES for n in (offset, *size, *stride)
    ):
        raise _Refused("its description of a tensor is damaged")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.num_bytes // dtype.itemsize:
        raise _Refused("a tensor reaches beyond its storage")
    return _Tensor(storage, dtype, offset, tuple(size), tuple(stride))


_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in (
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)}  # fmt: skip
_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8",
}  # fmt: skip
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_LEFT_OUT = (  # what trainings keep beside weights, and what it is made of; none of it is made here
    "argparse.Namespace", "torch.device", "numpy.dtype", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.ndarray", "_codecs.encode", "pathlib.PosixPath", "pathlib.WindowsPath",
)  # fmt: skip
_GLOBALS: dict[str, np.dtype | Callable] = {
    **dict.fromkeys(_LEFT_OUT, lambda *_: None),
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
    **{f"torch.{name}Storage": _DTYPES[dtype] for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": _DTYPES["uint8"],
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": lambda size: size,
    "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "torch._utils._rebuild_tensor": _tensor,  # before 0.4
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: _tensor(storage, offset, size, stride),
    "torch._utils._rebuild_tensor_v3": lambda storage, offset, size, stride, requires_grad, hooks, dtype, *_: _tensor(
        storage, offset, size, stride, dtype
    ),
}


class _Unpickler(pickle.Unpickler):
    """Python's own, with nothing to find but `_GLOBALS`; notes the storages spoken of."""

    def __init__(self, instructions: bytes, storages: dict[str, _Storage]) -> None:
        super().__init__(io.BytesIO(instructions))
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Raises _Refused for all else."""
        if f"{module}.{name}" not in _GLOBALS:
            raise _Refused(f"not only tensors: it holds {quoted(f'{module}.{name}')}", _SAVE_STATE)
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage; older files add a None to its description."""
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(length), *rest) if rest in ([], [None]):
                self._storages[key] = _Storage(key, dtype, length)
                return self._storages[key]
        raise _Refused("it refers to what is no storage", _SAVE_STATE)


_INSTRUCTIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT",
    "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
    "NEWOBJ",
}  # fmt: skip
_REPLACED = {
    "EMPTY_DICT": b"ccollections\nOrderedDict\n)R",  # a `_Dict`
    "BUILD": b"0",  # POP: nothing that a pickle names or makes gets attributes
    "NEWOBJ": b"R",  # what `find_class` gives is called, and has no classes
    "FRAME": b"",  # its length would be wrong now
}


def _checked_instructions(file: io.BytesIO) -> bytes:
    """Reads the pickle at which `file` stands, and leaves out what `pickle.Unpickler` should not do.

    It would set attributes of functions, hash any key, take functions from `copyreg`, and clear gigabytes of memory for
    one high number. What is left makes plain values, `_Dict`s, and calls of what `find_class` gave.
    """
    result, puts = bytearray(), 0
    data = file.getbuffer()
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name not in _INSTRUCTIONS:
            raise _Refused(f"not only tensors: it has the pickle instruction {opcode.name}", _SAVE_STATE)
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            puts += 1  # a pickler counts up: from 0, or from 1 in Python 2
            if (argument or 0) > puts:
                raise _Refused("damaged: too high a number in the pickle")
        result += _REPLACED.get(opcode.name, data[position : file.tell()])
        if len(result) > MAX_PICKLE_BYTES:
            raise _Refused("its description of the tensors is too long", _SAVE_STATE)
    return bytes(result)


def _unpickled(file: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    """The content of the pickle at which `file` stands; its storages are added to `storages`."""
    return _Unpickler(_checked_instructions(file), storages).load()
