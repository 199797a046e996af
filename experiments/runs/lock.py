"""Lock of a run's folder, so that two commands never write to it at once."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from textgen_env.files import naming_write_errors
from textgen_experiments.runs.folder import LOCK, RunError


@contextmanager
def locked(folder: Path, *, waits: bool = False) -> Iterator[None]:
    """Keep other commands from writing to `folder` while the block lasts.

    The system lets go of the lock however the process ends. The folder is made if need be, and
    removed if the block leaves nothing in it.

    Args:
        folder: that is written.
        waits: wait for another command that writes to it.

    Raises:
        RunError: another command is writing to the folder, and is not waited for.
        WriteError: the folder cannot be written.
    """
    path, is_new = folder / LOCK, not folder.exists()
    lock = FileLock(path)
    with naming_write_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=waits)
        except Timeout:
            raise RunError(
                f"{folder} must be written by one command at a time, got a second one: wait for "
                "the first to end, or choose another folder"
            ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # whoever opened it before tries again
        lock.release()
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
