"""Memory of this process: settings of the C library, and what is looked at for garbage."""

import ctypes
import gc
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
LARGEST_INT = 2**31 - 1


def retain_freed_memory() -> None:
    """Tell glibc not to return freed memory to the kernel.

    By default each large tensor is mapped anew, and its pages are faulted in and zeroed. Without
    glibc nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def spare_imports() -> None:
    """Let no search for garbage look at what there is by now: modules, which stay to the end.

    With PyTorch they are so many objects that each full search takes a tenth of a second.
    """
    gc.freeze()


def return_unused_memory() -> None:
    """Free what only cycles of references hold, and return to the kernel what glibc holds.

    It is for the turn from one kind of work to another: blocks of the sizes of the one do not fit
    into the gaps that the other leaves. What is freed later is held again.
    """
    gc.collect()
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
