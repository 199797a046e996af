"""Many connections at once: as many as the system allows, and one line where it allows no more."""

import asyncio
import errno
import resource
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from textgen_experiments.runs.progress import tell

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SILENCE = 10.0  # seconds between two lines


def allow_open_files() -> None:
    """Let this process have as many open files, and thus connections, as its user may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # where the system has a lower limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass
class ConnectionErrors:
    """Handler of an event loop's errors, which asyncio shows thousands of times without it.

    Connections that cannot be accepted stay in the system's queue, and are accepted later.

    Attributes:
        told_at: moment of the last line, by the monotonic clock.
    """

    told_at: float = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say in one line that connections wait, now and then; show any other error."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in EXHAUSTED):
            loop.default_exception_handler(context)
        elif monotonic() - self.told_at >= SILENCE:
            self.told_at = monotonic()
            tell(f"connections wait, since the system allows no more ({error.strerror})")
