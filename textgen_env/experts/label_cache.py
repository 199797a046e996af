"""Cache of a remote teacher's answers on disk, so that no query is sent twice.

The cache is one SQLite file in write-ahead mode on a local disk; several processes may use it at
once. A killed process loses at most the batch that it was storing. A record with a wrong checksum
counts as absent.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

LOCK_TIMEOUT = 60.0  # seconds to wait for another process that writes


class CacheError(ValueError):
    """Error of a file that cannot be used as a label cache."""


class LabelCache:
    """Persistent map from keys to answers, both bytes.

    Args:
        path: the file, created if it does not exist; SQLite keeps two more beside it while open.

    Raises:
        CacheError: `path` is no label cache, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._translate_errors():
            self.connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            with self.connection:
                self.connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers "
                    "(key BLOB PRIMARY KEY, answer BLOB, checksum BLOB) WITHOUT ROWID"
                )

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the stored answers, by key, to those of `keys` that have one.

        Raises:
            CacheError: the file is damaged.
        """
        known = {}
        query = "SELECT answer, checksum FROM answers WHERE key = ?"
        with self._translate_errors():
            for key in keys:
                found = self.connection.execute(query, (key,)).fetchone()
                if found and found[1] == _checksum(key, found[0]):
                    known[key] = found[0]
        return known

    def put(self, answers: Mapping[bytes, bytes]) -> None:
        """Store all `answers`, or none if the process is killed meanwhile.

        Raises:
            CacheError: the file is damaged, or the disk is full.
        """
        rows = [(key, answer, _checksum(key, answer)) for key, answer in answers.items()]
        with self._translate_errors(), self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the connection to the file."""
        self.connection.close()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise `CacheError` in place of SQLite's errors."""
        try:
            yield
        except sqlite3.Error as error:
            raise CacheError(
                f"cache must be a label cache that can be read and written, got {self.path} "
                f"({error}): delete it, or name another"
            ) from error


def _checksum(key: bytes, answer: bytes) -> bytes:
    return blake2b(key + answer, digest_size=8).digest()
