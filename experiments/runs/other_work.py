"""Cores that other processes keep busy, for which the threads of PyTorch's operators would wait.

Threads of an operator wait for each other in a loop. One whose core another process has keeps the
others waiting until the system gives it back: milliseconds for microseconds of work.
"""

import os
import time
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Self

SYSTEM_TIMES = Path("/proc/stat")  # Linux
TOLERANCE = 0.5  # cores; what others take now and then is no reason for fewer threads


@dataclass(frozen=True)
class CoreClock:
    """Times from which the work of other processes is counted.

    Attributes:
        began: seconds of a monotonic clock.
        busy: seconds that all cores together had worked; None where the system does not tell.
        own: seconds of them for this process.
    """

    began: float
    busy: float | None
    own: float

    @classmethod
    def start(cls) -> Self:
        """Return the times of now."""
        return cls(time.monotonic(), busy_core_seconds(), time.process_time())

    def busy_elsewhere(self) -> float:
        """Return the mean number of cores that others have kept busy since, 0 if unknown."""
        now = self.start()
        seconds = now.began - self.began
        if self.busy is None or now.busy is None or not seconds:
            return 0.0
        return max(0.0, (now.busy - self.busy - (now.own - self.own)) / seconds)


def busy_core_seconds(times: Path = SYSTEM_TIMES) -> float | None:
    """Return the seconds that all cores together have worked since the system was started.

    Args:
        times: file in the form of Linux's /proc/stat.

    Returns:
        None where there is no such file.
    """
    try:
        first = times.read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupt, soft_interrupt = map(int, first.split()[1:8])
    ticks = user + nice + system + interrupt + soft_interrupt
    return ticks / os.sysconf("SC_CLK_TCK")


def advice_on_threads(busy: float, cores: int, threads: int) -> str:
    """Return the advice to take fewer threads, "" where as many as there are find a core each.

    Args:
        busy: cores that other processes keep busy.
        cores: of the machine.
        threads: of PyTorch's operators.
    """
    free = cores - busy
    if threads <= max(free, 1) + TOLERANCE:
        return ""
    fewer = max(1, floor(free + TOLERANCE))
    return (
        f"other work keeps {min(busy, cores):.1f} of {cores} cores busy, and {threads} threads "
        f"wait for each other: --threads {fewer} may be many times as fast"
    )
