"""SHA-256 of files, computed once for each state that a file is found in.

Data of hundreds of megabytes is checked by its task and by every run that reads it, and the runs of
one table share most files.
"""

from functools import lru_cache
from hashlib import file_digest
from pathlib import Path


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    state = path.stat()
    return _digest_in(path, (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=1024)
def _digest_in(path: Path, state: tuple[int, ...]) -> str:
    """Hash a file once for each `state` that it is found in."""
    del state
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
