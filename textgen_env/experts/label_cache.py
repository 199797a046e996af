"""Answers on disk: nothing that was answered is asked again, after a kill or in another run.

One SQLite file in write-ahead mode, on a local disk, that several processes may use at once. A kill
loses what was being written and no more. A record whose checksum does not fit counts as absent.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

PATIENCE = 60.0  # seconds to wait for another process that writes


class CacheError(ValueError):
    """A file that cannot serve as a label cache."""


class LabelCache:
    """Bytes by key.

    Args:
        path: of the file, made if need be; two more lie beside it while it is used.

    Raises:
        CacheError: there is something else at `path`, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._complaints():
            self.connection = sqlite3.connect(path, timeout=PATIENCE)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            with self.connection:
                self.connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers "
                    "(key BLOB PRIMARY KEY, answer BLOB, checksum BLOB) WITHOUT ROWID"
                )

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """What is known of `keys`.

        Raises:
            CacheError: the file is damaged.
        """
        known = {}
        query = "SELECT answer, checksum FROM answers WHERE key = ?"
        with self._complaints():
            for key in keys:
                found = self.connection.execute(query, (key,)).fetchone()
                if found and found[1] == _checksum(key, found[0]):
                    known[key] = found[0]
        return known

    def put(self, answers: Mapping[bytes, bytes]) -> None:
        """Store all `answers` or, if the process is killed meanwhile, none.

        Raises:
            CacheError: the file is damaged, or the disk is full.
        """
        rows = [(key, answer, _checksum(key, answer)) for key, answer in answers.items()]
        with self._complaints(), self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()

    @contextmanager
    def _complaints(self) -> Iterator[None]:
        """Transition SQLite's errors into one of ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise CacheError(
                f"cache must be a label cache that can be read and written, got {self.path} "
                f"({error}): delete it, or name another"
            ) from error


def _checksum(key: bytes, answer: bytes) -> bytes:
    return blake2b(key + answer, digest_size=8).digest()
