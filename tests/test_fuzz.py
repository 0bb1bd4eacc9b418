"""A short form of `python -m benchmarks.fuzz`: damaged files of every format are refused as documented, or read."""

import pytest

from benchmarks import fuzz
from medgan_jax.errors import UserError


@pytest.mark.filterwarnings("ignore")  # of Pillow and NumPy, about what they then refuse
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damaged_files_are_refused_or_read(name, tmp_path):
    for seed in fuzz.FORMATS[name].seeds():
        assert fuzz.fault(name, seed[: len(seed) // 2], tmp_path) is None
    for index in range(25):
        assert fuzz.fault(name, fuzz.mutation(name, index), tmp_path) is None, index


def test_a_fault_is_seen(tmp_path, monkeypatch):
    def parse(path):
        match path.read_bytes():
            case b"lost":
                raise KeyError("lost")
            case b"refused":
                raise UserError("refused")
            case b"large":
                try:
                    raise MemoryError
                except MemoryError as error:
                    raise UserError("refused") from error

    monkeypatch.setitem(fuzz.FORMATS, "new", fuzz.Format("a.new", lambda: [b"read"], parse))
    found = {data: fuzz.fault("new", data, tmp_path) for data in (b"read", b"refused", b"lost", b"large")}
    assert found == {b"read": None, b"refused": None, b"lost": "KeyError: 'lost'", b"large": "needs more memory"}
