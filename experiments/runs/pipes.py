"""The end of a program whose standard output nobody reads any more, as after `| head`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PIPE_CLOSED = 1  # exit code, as that of Python and rich
OUTPUT_FAILED = 2  # exit code, as that of other errors that the user can mend
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
        _discard_output()
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:
        if error.filename is not None:  # a file's error says which; standard output has no name
            raise
        _discard_output()
        sys.stderr.write(f"textgen: standard output must be writable, got: {error.strerror}\n")
        raise SystemExit(OUTPUT_FAILED) from None


def _discard_output() -> None:
    """Let Python's last flush of standard output, at the program's end, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
