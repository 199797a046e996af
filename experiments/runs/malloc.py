"""What the program sets in its own process before it works."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
LARGEST_INT = 2**31 - 1


def retain_freed_memory() -> None:
    """Tell glibc not to return freed memory to the kernel.

    By default each large tensor is mapped anew and its pages are faulted in and zeroed: a training
    update of a small model spent 30 % of its time so. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
