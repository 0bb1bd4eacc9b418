"""Compiling ahead of time."""

import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.compilation import compiled


def test_compiles_for_shapes():
    program = compiled(jax.jit(lambda x, y: x @ y), jax.ShapeDtypeStruct((2, 3), jnp.float32), np.ones((3, 2), "f"))
    np.testing.assert_array_equal(program(np.ones((2, 3), "f"), np.ones((3, 2), "f")), np.full((2, 2), 3))


def test_compiles_without_glibc(monkeypatch):
    """A C library without `malloc_trim`, and a system where it cannot be opened."""

    def closed(name):
        raise OSError

    for library in (lambda name: object(), closed):
        monkeypatch.setattr("medgan_jax.compilation.ctypes.CDLL", library)
        assert compiled(jax.jit(lambda x: x + 1), 1.0)(1.0) == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_memory_goes_back_to_the_system():
    """Blocks too small to be mapped each by itself, freed below one that is in use: kept until it is asked for."""
    code = (
        "import re\n"
        "import jax, numpy as np\n"
        "from medgan_jax.compilation import compiled\n"
        "def resident():\n"
        "    return int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "jax.jit(lambda x: x).lower(1.0).compile()\n"
        "blocks = [bytes(2**16 - 100) for _ in range(2**11)]\n"
        "last = blocks[-1]\n"
        "before = resident()\n"
        "del blocks\n"
        "kept = resident()\n"
        "compiled(jax.jit(lambda x: x + 1), 1.0)\n"
        "print(before - kept, before - resident())\n"
    )
    root = Path(__file__).parents[1]
    kept, returned = map(float, subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).split())
    assert kept < 32
    assert returned > 64
