"""How much memory a compiled program takes, and how much there is."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax


def memory_needed(program: jax.stages.Compiled) -> int:
    """Bytes that a program takes of each device while it runs, its arguments and results included."""
    sizes = program.memory_analysis()
    return (
        sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    )


def memory_available(device: jax.Device) -> int | None:
    """Bytes that a device has left; None where it does not tell. CPU devices share what the machine has."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    machine = host_memory_available()
    return machine and machine // jax.local_device_count()


def host_memory_available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take on Linux, by the machine and by its control groups; None elsewhere.

    `root`: where proc/ and sys/ are.
    """
    free = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        free.append(1024 * _table(root / "proc/meminfo")["MemAvailable"])
    for group, limit, usage, inactive in _groups(root):
        with contextlib.suppress(OSError, KeyError, ValueError):  # "max" is no number, and no limit
            # What files left in memory counts as used, and goes when it is needed.
            cached = _table(group / "memory.stat")[inactive]
            free.append(int((group / limit).read_text()) - int((group / usage).read_text()) + cached)
    return max(min(free), 0) if free else None


def _groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Folders of this process's control groups, from the innermost out, and the names of what they hold."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mount = root / "sys/fs/cgroup"
            names = ("memory.max", "memory.current", "inactive_file")
            if "memory" in controllers.split(","):
                mount, names = (
                    mount / "memory",
                    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
                )
            elif controllers:
                continue
            inner = Path(path.lstrip("/"))
            for group in (inner, *inner.parents):
                yield (mount / group, *names)


def _table(path: Path) -> dict[str, int]:
    """Lines such as "MemFree:  12 kB" or "inactive_file 12"."""
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
