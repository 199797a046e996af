"""Files that are written beside their place and renamed, so that each is whole or as it was.

A kill leaves the old file and at most one folder beside it, which the next write removes, or
`remove_leftovers` where none may follow. The mode is the one that the umask gives, whichever
library writes. Reading is left to the callers.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"  # suffix of the folder that a file is written in
MODE = ".mode"  # suffix of the empty file that shows the mode of new files

_TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # names that safetensors gives to what it writes


class WriteError(OSError):
    """A file that could not be written, for want of room or of permission."""


def write_atomically(
    path: Path, write: Callable[[Path], object], num_bytes: int | None = None
) -> None:
    """Write a file beside `path`, flush it to disk and rename it to `path`.

    Args:
        path: path of the file; its folder is made if need be.
        write: writes the file to the path that it is given.
        num_bytes: bytes of the file, for the message of an error; None if they are not known.

    Raises:
        WriteError: the disk is full, cannot be written, or failed.
    """
    with naming_write_errors(path, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _empty_folder(path.with_name(path.name + PARTIAL)) as folder:
            write(folder / path.name)
            settle(folder / path.name)
            (folder / path.name).replace(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what kills have left in a folder that nothing else writes to meanwhile.

    These are `NAME.partial` beside a file `NAME`, unless it holds other things than a write does,
    and temporary files of safetensors, which older versions wrote beside their place. What the
    operating system does not let go stays.

    Args:
        folder: folder of files that `write_atomically` writes; it may be missing.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if _is_temporary(path) or _is_partial(path):
                _remove(path)


def _is_temporary(path: Path) -> bool:
    """Return True if `path` is an unfinished safetensors file by its name and its first bytes."""
    if not _TEMPORARY.fullmatch(path.name) or not _is_own_file(path):
        return False
    with path.open("rb") as file:
        begin = file.read(10)
    return not begin or begin[8:] == b'{"'  # JSON, after its length


def _is_partial(path: Path) -> bool:
    """Return True if `path` is what a file beside it was to be written in."""
    name = path.name.removesuffix(PARTIAL)
    if name == path.name or not _is_own_file(path.with_name(name)):
        return False
    if not path.is_dir():
        return _is_own_file(path)
    return not path.is_symlink() and all(
        _is_own_file(each) and (each.name in (name, name + MODE) or _is_temporary(each))
        for each in path.iterdir()
    )


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@contextmanager
def naming_write_errors(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turn each error of the operating system within the block to a `WriteError` with `path`.

    Libraries in Rust have error classes of their own, whose text ends in "(os error 28)".

    Args:
        path: file or folder that is being written.
        num_bytes: bytes that it needs; None if they are not known.

    Raises:
        WriteError: the block failed so.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        needed = "" if num_bytes is None else f" with {num_bytes:,} bytes"
        raise WriteError(
            f"{path} must be written{needed}, got: {reason}; make room or choose a folder that "
            "can be written, then the same command goes on"
        ) from error


def settle(path: Path) -> None:
    """Give a file that was just written the mode of new files, and flush it to disk."""
    probe = path.with_name(path.name + MODE)
    probe.touch()  # reading the umask itself would change it for all threads meanwhile
    path.chmod(probe.stat().st_mode)
    probe.unlink()
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _empty_folder(folder: Path) -> Iterator[Path]:
    """Make `folder`, without what a kill left there, and remove it after the block."""
    _remove(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
