"""PyTorch's files read to the number; hostile and damaged ones refused in one line, with nothing run."""

import copyreg
import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from medgan_jax.errors import UserError
from medgan_jax.torch_files import MAX_BYTES, MAX_PICKLE_BYTES, read_arrays, read_state_dicts

FOLDER = Path(__file__).parent / "oracles/torch_files"
SAVED = ("zip.pth", "legacy.pth", "checkpoint.pth")
MAGIC = 0x1950A86A20F9469CFC6C
MEGABYTE = 2**20


class Global(str):
    """A name that a pickle is to import: "module name"."""


class Call(tuple):
    """A function and its arguments."""


class Reference(tuple):
    """A persistent id."""


def encode(value):
    """The pickle instructions that make `value`, without the last one."""
    match value:
        case Global():
            return b"c" + value.replace(" ", "\n").encode() + b"\n"
        case Call():
            return encode(Global(value[0])) + encode(tuple(value[1:])) + b"R"
        case Reference():
            return encode(tuple(value)) + b"Q"
        case bool() | None:
            return {True: b"\x88", False: b"\x89", None: b"N"}[value]
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(k) + encode(v) for k, v in value.items()) + b"u"
        case bytes():
            return value
    raise TypeError(value)


def tensor(size=(4,), stride=(1,), offset=0, count=4, key="0", kind="torch FloatStorage"):
    storage = Reference(("storage", Global(kind), key, "cpu", count))
    return Call(("torch._utils _rebuild_tensor_v2", storage, offset, size, stride, False, EMPTY))


EMPTY = Call(("collections OrderedDict",))
FOUR = np.arange(4, dtype="<f4").tobytes()


def zipped(records, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return file.getvalue()


def modern(content, storages=None, **records):
    storages = {"0": FOUR} if storages is None else storages
    data = {f"a/data/{key}": value for key, value in storages.items()}
    return zipped({"a/data.pkl": b"\x80\x02" + encode(content) + b".", **data, **records})


def legacy(content, *, magic=MAGIC, little=True, keys=("0",), count=4, data=FOUR):
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    pickles = (magic, 1001, system, content, list(keys))
    return b"".join(b"\x80\x02" + encode(p) + b"." for p in pickles) + struct.pack("<q", count) + data


@pytest.fixture
def refused(tmp_path):
    """A function that gives a reader some bytes, and returns its one line without the file's name."""

    def check(data, read=read_arrays):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        traced = len(data) < 50_000  # it takes much time
        if traced:
            tracemalloc.start()
        try:
            with pytest.raises(UserError) as caught:
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE  # 0 where it is not traced
        finally:
            tracemalloc.stop()
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "; " in message
        assert len(message) < len(str(path)) + 250
        assert len(message.splitlines()) == 1
        return message.removeprefix(f"{path}: ")

    return check


@pytest.fixture
def accepted(tmp_path):
    def read(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_arrays(path)

    return read


def assert_same(arrays):
    with np.load(FOLDER / "expected.npz") as expected:
        assert list(arrays) == expected.files
        for name, array in arrays.items():
            assert type(array) is np.ndarray
            np.testing.assert_array_equal(array, expected[name], strict=True)


@pytest.mark.parametrize("name", SAVED)
def test_numbers_are_pytorchs(name, accepted):
    assert_same(read_arrays(FOLDER / name))
    assert_same(read_arrays(FOLDER / name))
    within = {"weights/v0.1/alex.pt": (FOLDER / name).read_bytes(), "__MACOSX/._alex.pt": b"x", "._b.pt": b"x"}
    assert_same(accepted(zipped(within, zipfile.ZIP_DEFLATED)))


def test_npz_is_told_by_its_content(tmp_path, refused):
    assert_same(read_arrays(FOLDER / "expected.npz"))
    arrays = {"columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">i4")}
    np.savez(tmp_path / "a.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("__MACOSX/._big.npy", b"x")
    read = read_arrays(tmp_path / "a.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype.isnative
        assert read[name].flags.c_contiguous
    assert "neither of PyTorch" in refused((FOLDER / "expected.npz").read_bytes(), read_state_dicts)


def test_files_made_by_hand_are_read(accepted):
    """Shows that what the tests below refuse, they refuse for what they say."""
    for make in (modern, legacy):
        np.testing.assert_array_equal(accepted(make({"w": tensor()}))["w"], [0, 1, 2, 3])
        np.testing.assert_array_equal(accepted(make({"w": tensor((2,), (2,), 1)}))["w"], [1, 3])
        np.testing.assert_array_equal(accepted(make({"w": tensor((3, 2), (1, 1))}))["w"], [[0, 1], [1, 2], [2, 3]])
        wrapped = {"model": {"w": tensor()}, "epoch": 3, "noise": tensor(), "args": Call(("argparse Namespace",))}
        np.testing.assert_array_equal(accepted(make(wrapped))["w"], [0, 1, 2, 3])
        assert accepted(make({"w": tensor((0, 3), (3, 1), 4)}))["w"].shape == (0, 3)
    storage = Reference(("storage", Global("torch FloatStorage"), "0", "cpu", 4, None))
    old = Call(("torch._utils _rebuild_tensor", storage, 0, (2, 2), (1, 2)))  # before 0.4, and of Python 2
    pairs = Call(("collections OrderedDict", [[b"U\x01wq\x01", old]]))
    np.testing.assert_array_equal(accepted(legacy(pairs))["w"], [[0, 2], [1, 3]])


def test_state_dicts_within_a_checkpoint(tmp_path):
    """Not those of optimizers; tensors beside a state dict are no weights."""
    again = encode({"w": tensor()}) + b"q\x00"
    content = {
        "nets": {"G": again, "same": b"h\x00", 3: {"w": tensor((2,))}},
        "ema": {"decay": 1, "shadow": {"w": tensor((1,))}, "noise": tensor()},
        "optG": {"state": {0: {"exp_avg": tensor()}}, "param_groups": []},
        "noise": tensor(),
    }
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(modern(content))
    found = read_state_dicts(path)
    shapes = {key: {name: array.shape for name, array in arrays.items()} for key, arrays in found.items()}
    assert shapes == {"nets.G": {"w": (4,)}, "nets.3": {"w": (2,)}, "ema.shadow": {"w": (1,)}}
    with pytest.raises(UserError, match="holds the state dicts 'nets.G', 'nets.3', 'ema.shadow'; save the state dict"):
        read_arrays(path)


def test_safetensors(tmp_path, refused):
    random = np.random.default_rng(0)
    arrays = {
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float16),
        **{
            str(np.dtype(t)): random.integers(0, 2, (2, 3)).astype(t) for t in ("f8", "f4", "f2", "u1", "i2", "u4", "?")
        },
    }
    data = safetensors.numpy.save(arrays, {"format": "pt"})
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    (found,) = read_state_dicts(path).values()
    assert list(found) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert found[name].flags.writeable
    header = b'{"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x49\xc0")
    np.testing.assert_array_equal(read_arrays(path)["b"], np.float32([1, -3.140625]), strict=True)
    for cut in (12, len(data) // 2, len(data) - 1):
        assert "no whole .safetensors file (Error while deserializing" in refused(data[:cut])
    assert "no whole .safetensors file" in refused(data.replace(b'"shape":[2,3]', b'"shape":[2,4]'))
    header = b'{"b":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match="its entry 'b' is of the type F8_E4M3; save it as float32"):
        read_arrays(path)
    assert "holds no tensors" in refused(safetensors.numpy.save({}))
    (index,) = ('{"metadata": {"total_size": 8}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}',)
    assert refused(index.encode()) == "is the index of a network in several files; save it in one file, and give that"


STAND_INS = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 14\n", "is a Git LFS pointer, not "
                "the file itself; run git lfs pull in its repository, or download the file itself"),
    "git-annex": (b"/annex/objects/SHA256E-s3--0a.pth\n", "is a git-annex pointer, not the file itself; run git annex"),
    "a page": (b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in</title>", "is a web page (HTML), not the file "
               "itself; download the file itself: its server may ask to log in"),
    "a page without head": (b"<script>x</script>\n<HTML lang=en>" + bytes(9), "is a web page (HTML)"),
    "JSON": (b'{"error":"Repository not found"}', """is a JSON text, '{"error":"Repository not found"}'; download"""),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is an XML text, "),
    "words": (b"404: Not Found", "is a text, '404: Not Found'; download the file itself"),
    "gzip": (gzip.compress(FOUR), "is a gzip archive; unpack it and give the file within"),
    "tar": (b"netG.pth".ljust(257, b"\0") + b"ustar\x0000" + bytes(248), "is a tar archive; unpack it"),
    "zip": (zipped({"a.pth": b"x", "b/c.ckpt": b"x", "README": b"x"}), "it holds 'a.pth', 'b/c.ckpt'; unpack it"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras writes it; save the state dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", STAND_INS)
def test_what_stands_in_for_a_file_is_named(case, refused):
    data, says = STAND_INS[case]
    assert refused(data).startswith(says) or (case == "zip" and says in refused(data))
    assert refused(data, read_state_dicts) == refused(data)


ATTACKS = {
    "global": lambda command: encode(Call(("os system", command))),
    "eval": lambda command: encode(Call(("builtins eval", f"__import__('os').system({command!r})"))),
    "stack global": lambda command: encode("os") + encode("system") + b"\x93" + encode((command,)) + b"R",
    "inst": lambda command: b"(" + encode(command) + b"ios\nsystem\n",
    "obj": lambda command: b"(cos\nsystem\n" + encode(command) + b"o",
    "newobj": lambda command: b"csubprocess\nPopen\n" + encode((["sh", "-c", command],)) + b"\x81",
    "protocol 0": lambda command: b"cos\nsystem\np0\n(V" + command.encode() + b"\np1\ntp2\nR",
    "extension": lambda command: b"\x82\xf0" + encode((command,)) + b"R",
}


@pytest.fixture
def command(tmp_path):
    """A command that leaves a mark."""
    copyreg.add_extension("os", "system", 0xF0)
    pickle.loads(b"\x80\x02\x82\xf0.")  # from now on Python's unpickler has it at hand, and does not look it up
    yield f"touch '{tmp_path / 'marker'}'"
    copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_run_nothing(attack, command, tmp_path, refused):
    code = ATTACKS[attack](command)
    for place in (
        modern(code),
        modern({"w": tensor(), "x": code}),
        modern({"w": tensor(), "x": Reference(("storage", code, "0", "cpu", 4))}),
        modern({"w": tensor(), "x": code + b"Q"}),
        legacy(code),
        legacy({"w": tensor()}, magic=code),
        legacy({"w": tensor()}, keys=(code,)),
        zipped({"weights.pth": modern(code)}),
        b"\x80\x04" + code + b".",
    ):
        refused(place)
    assert not (tmp_path / "marker").exists()
    if attack != "newobj":  # whose process is not waited for
        pickle.loads(b"\x80\x04" + code + b".")
        assert (tmp_path / "marker").exists()  # it would work


def test_pickled_objects_run_nothing(command, tmp_path, refused):
    class Attack:
        def __reduce__(self):
            return os.system, (command,)

    for protocol in range(6):
        refused(pickle.dumps(Attack(), protocol))
        refused(zipped({"a/data.pkl": pickle.dumps(Attack(), protocol)}))
    array = io.BytesIO()
    np.save(array, np.array([Attack()], object), allow_pickle=True)
    refused(zipped({"w.npy": array.getvalue()}))
    assert not (tmp_path / "marker").exists()


def test_a_pickle_changes_no_function(accepted, refused):
    """By the instruction BUILD, which sets attributes of whatever is named or made."""
    function, dtype = encode(Global("collections OrderedDict")), encode(Global("torch float32"))
    defaults = encode((None, {"__defaults__": ([["x", 3]],)}))
    for built in (function + defaults, dtype + encode((3, ">", None, None, None, -1, -1, 0)), encode(tensor())):
        refused(modern(built + b"b"))
        read = accepted(modern(encode(EMPTY) + encode("w") + encode(tensor()) + b"s"))
        assert list(read) == ["w"]
        np.testing.assert_array_equal(read["w"], [0, 1, 2, 3])


def doubled(times):
    """A tuple of two of a tuple of two of ..., which takes 2 ** times steps to hash."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))


def twice(times):
    """A dict of twice a dict of twice a dict of ..."""
    content = b"}q\x00"
    for i in range(times):
        content = b"}" + encode("a") + content + b"s" + encode("b") + b"h" + bytes([i]) + b"sq" + bytes([i + 1])
    return content


CHAIN = "_rebuild_tensor_v2.__globals__"
OTHER = {
    "attribute chain": (encode("torch._utils") + encode(CHAIN) + b"\x93", "holds 'torch._utils._rebuild"),
    "a module": (Call(("torch.nn.modules.linear Linear",)), "holds 'torch.nn.modules.linear.Linear'"),
    "other storage": (tensor(kind="torch ComplexFloatStorage"), "holds 'torch.ComplexFloatStorage'"),
    "a function as storage": (tensor(kind="torch Size"), "no storage"),
    "a call of a type": (Call(("torch FloatStorage", 3)), "not only tensors"),
    "a call of a value": (encode("x") + encode(()) + b"R", "not only tensors"),
    "reference in words": (b"Pstorage\n", "instruction PERSID"),
    "module reference": (Reference(("module", "os", "x", "y")), "no storage"),
    "view of a storage": (
        Reference(("storage", Global("torch FloatStorage"), "0", "cpu", 4, ("1", 0, 2))), "no storage"),
    "path as key": ({"w": tensor(key="../../../etc/passwd")}, "damaged"),
    "a key on which Python crashes": (b"}" + b")" + b"\x85" * 100_000 + b"Ns", "a key is neither"),
    "a key that takes years": (b"}" + doubled(90) + b"Ns", "a key is neither"),
    "such keys from Python 2": (Call(("collections OrderedDict", [[doubled(90), 1]])), "a key is neither"),
    "keys that collide": (b"}" + encode(2**61 - 1) + b"Ns", "a key is neither"),
    "deep entry": ({"w": b"]" * 40_000 + b"a" * 39_999}, "no state dict"),
    "itself": (b"}q\x00" + encode("w") + b"h\x00s", "no state dict"),
    "deep dicts": ((b"}" + encode("w")) * 2_000 + b"N" + b"s" * 2_000, "damaged"),
    "dicts that take years": (twice(60), "no state dict"),
    "gigabytes of memo": (b"Nr\x00\x00\x00\x10", "too high a number"),
    "long text": (b"\x8d" + b"\xff" * 7 + b"\x7f", "not only tensors"),
    "long bytes": (b"\x8e" + b"\xff" * 7 + b"\x7f", "damaged"),
    "long number": (b"\x8b\xff\xff\xff\x7f", "damaged"),
    "no operands": (b"R", "damaged"),
    "no mark": (b"t", "damaged"),
    "unknown instruction": (b"\xff", "damaged"),
    "a long description": (b"X\x00\x00\x20\x00" + b"x" * MAX_PICKLE_BYTES, "too long"),
    "a bare tensor": (tensor(), "no state dict"),
    "no tensors": ({}, "no state dict"),
    "a number": ({"w": tensor(), "epoch": 3}, "entry 'epoch' is no tensor"),
    "a number for name": ({3: tensor()}, "entry '3' is no tensor"),
    "a long name": ({"\0" * 1000: 3, "w": tensor()}, "...' is no tensor"),
    "lines in a name": ({"a\nb\u2028c\x1b[1m": 3, "w": tensor()}, r"'a\nb\u2028c\x1b[1m'"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_other_content_is_refused(case, refused):
    content, reason = OTHER[case]
    assert reason in refused(modern(content))
    refused(legacy(content))


def test_a_list_is_not_copied_again_and_again(refused):
    """A list of 1000 items, made into a dict by two bytes."""
    again = encode(Global("collections OrderedDict")) + b"h\x01\x85R"
    items = encode([("w", 1)] * 1000) + b"q\x01"
    tracemalloc.start()
    refused(modern({"items": items, "copies": [again * 2000]}))
    assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE


VIEWS = {
    "beyond": {"size": (5,)},
    "beyond by offset": {"offset": 1},
    "beyond by stride": {"size": (2,), "stride": (4,)},
    "offset below": {"offset": -1},
    "stride below": {"size": (2,), "stride": (-1,), "offset": 3},
    "size below": {"size": (-1, -4), "stride": (4, 1)},
    "large numbers": {"size": (2**62, 4), "stride": (0, 1)},
    "numbers of many bytes": {"offset": 2**1000},
    "stride of one row": {"size": (1, 4), "stride": (2**63, 1)},
    "unfolded": {"size": (10_000, 4), "stride": (0, 1)},
    "empty, with large sides": {"size": (0, *[2**30] * 3), "stride": (1,) * 4},
    "many dimensions": {"size": (1,) * 100, "stride": (1,) * 100},
    "strides for others": {"stride": (4, 1)},
    "no sizes": {"size": 4},
    "sizes in words": {"size": ("4",)},
    "storage of more": {"count": 5},
    "storage of less": {"count": 3},
    "storage below": {"count": -1},
    "storage of many": {"count": 2**60},
    "storage of wider": {"kind": "torch DoubleStorage"},
    "storage of another key": {"key": "1"},
}


@pytest.mark.parametrize("case", VIEWS)
def test_views_stay_within_their_storage(case, refused):
    for make in (modern, legacy):
        refused(make({"w": tensor(**VIEWS[case])}))


def test_a_storage_has_one_size(refused):
    refused(modern({"w": tensor(), "x": tensor((2,), count=2)}))
    for changes in ({"count": 5}, {"count": -1}, {"count": 2**62}, {"keys": ("1",)}, {"keys": ()}, {"data": FOUR[:9]}):
        refused(legacy({"w": tensor()}, **changes))


def test_many_views_of_one_storage_are_refused(refused):
    views = {f"w{i}": tensor((100_000,), count=100_000) for i in range(1000)}
    assert "unfolds to" in refused(modern(views, {"0": b"\0" * 400_000}))


def test_big_endian_numbers_are_refused(accepted, refused):
    assert "little-endian" in refused(modern({"w": tensor()}, **{"a/byteorder": b"big"}))
    assert "little-endian" in refused(legacy({"w": tensor()}, little=False))
    assert accepted(modern({"w": tensor()}, **{"a/byteorder": b"little"}))


def test_zip_bombs_are_refused(refused):
    zeros = bytes(20 * MEGABYTE)
    bomb = zipped({"a/data.pkl": b"\x80\x02" + encode({"w": tensor()}) + b".", "a/data/0": zeros}, zipfile.ZIP_DEFLATED)
    assert "unfolds to 20,97" in refused(bomb)
    assert "unfolds to" in refused(zipped({"w.npy": zeros}, zipfile.ZIP_DEFLATED))
    assert "unfolds to" in refused(zipped({"w.pth": zeros}, zipfile.ZIP_DEFLATED))
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        assert "rare compression" in refused(zipped({"a/data.pkl": b"x"}, method))
    liar = zipped({"w.pth": zeros}, zipfile.ZIP_DEFLATED).replace(struct.pack("<I", len(zeros)), struct.pack("<I", 99))
    assert "damaged" in refused(liar)


def test_other_archives_are_refused(refused):
    inner = modern({"w": tensor()})
    for records in ({}, {"a.txt": b"x"}, {"a.pth": inner, "b.pth": inner}, {"a.pth": zipped({"b.pth": inner})}):
        assert "neither of PyTorch" in refused(zipped(records))


@pytest.mark.parametrize(
    "description", ["'<f4', 'shape': (5,)", "'|O', 'shape': (2,)", "[('a', '<f4')], 'shape': (4,)"]
)
def test_other_arrays_are_refused(description, refused):
    header = f"{{'fortran_order': False, 'descr': {description}}}"
    refused(zipped({"w.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + FOUR}))


def test_files_that_cannot_be_read(tmp_path, refused):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match="check the path"):
            read_arrays(path)
    assert refused(b"") == "empty file; copy or download it again"
    for data in (b"\x89PNG\r\n\x1a\n", pickle.dumps({"w": 1.0})):
        assert "no file of PyTorch" in refused(data)
    large = tmp_path / "large.pth"
    with open(large, "wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room
    with pytest.raises(UserError, match="limit 2,147,483,648"):
        read_arrays(large)


@pytest.mark.parametrize("name", [*SAVED, "expected.npz"])
def test_files_that_are_cut(name, refused):
    """`tests/test_fuzz.py` damages them in other ways."""
    data = (FOLDER / name).read_bytes()
    for cut in np.linspace(0, len(data) - 1, 10, dtype=int):
        refused(data[:cut])
