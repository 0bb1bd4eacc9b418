"""Compiling ahead of time, and what is asked of the C library."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
@pytest.mark.parametrize("keeps", [True, False])
def test_large_blocks_are_kept(keeps):
    """Faults are pages that the system had to map: of the second block as of the first, unless that one was kept."""
    code = (
        "import resource, threading\n"
        "import numpy as np\n"
        "from medgan_jax.compilation import keep_workspace\n"
        f"{keeps} and keep_workspace()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    np.ones(2**24)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "for _ in range(2):\n"
        "    thread = threading.Thread(target=faults)\n"
        "    thread.start()\n"
        "    thread.join()\n"
    )
    root = Path(__file__).parents[1]
    first, second = map(int, subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).split())
    assert second < first / 100 if keeps else second > first / 2
