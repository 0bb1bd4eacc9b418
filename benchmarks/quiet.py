"""Who else works on this machine meanwhile: a comparison on busy cores says little.

It does not hit both sides alike: threads that wait for each other by spinning, as those of PyTorch on a CPU, lose
several times as much as threads that take the next piece of work from a queue.
"""

import os
import resource
import time
from pathlib import Path
from typing import Self

TOLERATED = 5  # percent


class OthersBusy:
    """Measures, within `with`, what processes other than this one and its children take of the cores.

    `percent` of all cores' time is there at the end; None where the system does not say (other than Linux). Children
    must have ended by then.
    """

    def __init__(self) -> None:
        """Not measuring yet."""
        self.percent: float | None = None

    def __enter__(self) -> Self:
        """Starts."""
        self._before = _busy_seconds(), _own_seconds(), time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends."""
        busy, own, now = _busy_seconds(), _own_seconds(), time.perf_counter()
        if busy is not None and self._before[0] is not None:
            others = (busy - self._before[0]) - (own - self._before[1])
            self.percent = round(max(0, 100 * others / ((now - self._before[2]) * (os.cpu_count() or 1))), 1)


def _busy_seconds() -> float | None:
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
