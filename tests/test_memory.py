"""What a program needs, and what a machine has left."""

import jax
import jax.numpy as jnp
import pytest

from medgan_jax.memory import host_memory_available, memory_available, memory_needed

MIB = 2**20


def test_a_program_needs_its_arguments_results_and_workspace():
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)

    def twice(x):
        return x @ x.T + 1

    program = jax.jit(twice).lower(x).compile()
    assert 8 * MIB <= memory_needed(program) <= 24 * MIB
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert 4 * MIB <= memory_needed(donated) <= 4 * MIB + 4096  # in place


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:    2048 kB\nHugePages_Total:  0\n"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 2 * MIB), (str(100 * MIB), 2 * MIB), (str(MIB), MIB - 600_000 + 100_000), ("1000", 0)],
)
def test_the_narrowest_limit_counts(tmp_path, limit, expected):
    """Of the machine, or of a group further out; what files left in memory can be had back."""
    group = "sys__fs__cgroup__job"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/job/step\n")
    write(
        tmp_path,
        **{f"{group}__memory.max": limit + "\n", f"{group}__memory.current": "600000\n"},
        **{f"{group}__memory.stat": "anon 5\ninactive_file 100000\n"},
        **{f"{group}__step__memory.max": "max\n", f"{group}__step__memory.current": "1\n"},
    )
    assert host_memory_available(tmp_path) == expected


def test_groups_of_the_first_version(tmp_path):
    group = "sys__fs__cgroup__memory__job"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="5:cpu:/\n4:memory:/job\n")
    write(
        tmp_path,
        **{f"{group}__memory.limit_in_bytes": "1000000", f"{group}__memory.usage_in_bytes": "600000"},
        **{f"{group}__memory.stat": "total_inactive_file 7\n"},
    )
    assert host_memory_available(tmp_path) == 400_007


def test_a_machine_that_does_not_tell(tmp_path):
    assert host_memory_available(tmp_path) is None


class Device:
    platform = "gpu"

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_a_device_tells_for_itself():
    assert memory_available(Device({"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert memory_available(Device(None)) is None
    cpu = jax.devices()[0]
    assert 0 < memory_available(cpu) <= host_memory_available()  # two of them share the machine
