"""The end of a program whose standard output nobody reads any more, as after `| head`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PIPE_CLOSED = 1  # exit code, as that of Python and rich
STANDARD_OUTPUT = 1  # its file descriptor


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """End the program without a word where what is written within cannot be read any more."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as after `>&-` in a shell
                sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, which must not fail, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        raise SystemExit(PIPE_CLOSED) from None
