"""State dicts as PyTorch writes them, told by its own files and Python's own unpickler."""

import collections
import io
import pickle
import zipfile

import numpy as np
import published
import pytest

from medgan_jax.compat.torch.convert import from_state_dict, to_state_dict
from medgan_jax.compat.torch.write import write_state_dict
from medgan_jax.torch_files import read_arrays


class Described(pickle.Unpickler):
    """Keeps calls and storages as they are spelt."""

    def find_class(self, module, name):
        return collections.OrderedDict if name == "OrderedDict" else lambda *arguments: (module, name, arguments)

    def persistent_load(self, reference):
        kind, storage, *rest = reference
        return kind, storage()[:2], *rest


def described(path):
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        return Described(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()


def test_the_description_is_pytorchs(tmp_path):
    """Names and order, types, keys, sizes and strides of a file that PyTorch wrote."""
    theirs = published.FOLDER / "netG16.pth"
    network = from_state_dict(read_arrays(theirs))
    write_state_dict(tmp_path / "a.pth", to_state_dict(network.module, network.variables))
    ours, wanted = described(tmp_path / "a.pth"), described(theirs)
    assert list(ours.items()) == list(wanted.items())
    assert len(ours) == 13


def test_numbers_come_back_and_bytes_are_the_same(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "a.b": random.normal(size=(3, 4, 5)).astype(np.float32),
        "transposed": random.normal(size=(3, 4)).astype(np.float32).T,
        "big-endian": random.normal(size=7).astype(">f4"),
        "counter": np.array(-(2**40)),
        "empty": np.zeros((0, 3), np.float32),
        "größe": np.ones((1, 1, 1), np.float32),
    }
    paths = tmp_path / "a.pth", tmp_path / "b.pth"
    for path in paths:
        write_state_dict(path, arrays)
    read = read_arrays(paths[0])
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array.astype(array.dtype.newbyteorder("=")), strict=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "b.pth"}


def test_numbers_can_be_mapped_into_memory(tmp_path):
    """Uncompressed, and at places in the file that suit them."""
    arrays = {"x" * length: np.full(length, length, np.float32) for length in (1, 17, 200)}
    write_state_dict(tmp_path / "a.pth", arrays)
    data = (tmp_path / "a.pth").read_bytes()
    for array in arrays.values():
        assert data.find(array.tobytes()) % 64 == 0


def test_other_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="x is of float64; a state dict is written of float32 and int64"):
        write_state_dict(tmp_path / "a.pth", {"x": np.zeros(3)})
    assert not list(tmp_path.iterdir())
