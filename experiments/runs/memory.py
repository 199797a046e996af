"""Memory of this process, as the kernel (Linux) counts it.

A peak never falls again, so each measurement wants a process of its own.
"""

import ctypes
from pathlib import Path

from textgen_experiments.runs.progress import tell

MIB_PER_KIB = 1 / 1024
BYTES_PER_MIB = 2**20
M_MMAP_THRESHOLD = -3  # from <malloc.h>


def process_memory(entry: str) -> float:
    """Return the MiB of this process, current (VmRSS) or at their peak (VmHWM).

    Raises:
        OSError: the system has no such entry in /proc.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) * MIB_PER_KIB
    raise OSError(f"this system does not tell {entry} of a process")


def peak_of_process() -> float:
    """Return the MiB of this process at their peak so far, or 0 where the system does not tell."""
    try:
        return process_memory("VmHWM")
    except OSError:
        return 0.0


def tell_peak_memory() -> None:
    """Print the memory of this process at its peak, if the system tells it."""
    if peak := peak_of_process():
        tell(f"peak memory: {peak:,.0f} MiB")


def return_freed_memory() -> None:
    """Make glibc map every tensor above 1 MiB separately, so that the peak counts live tensors."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, BYTES_PER_MIB)
