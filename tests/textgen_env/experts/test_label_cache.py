"""The label cache returns all that was stored, after any kill, and nothing else."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from textgen_env.experts.label_cache import CacheError, LabelCache

ANSWERS = {b"%03d" % number: bytes([number]) * (50 + number) for number in range(200)}
WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from tests.textgen_env.experts.test_label_cache import ANSWERS
from textgen_env.experts.label_cache import LabelCache
cache = LabelCache(Path(sys.argv[1]))
for key, answer in ANSWERS.items():
    cache.put({key: answer})
os._exit(9)  # nothing is closed: all answers are in the write-ahead log
"""


def test_stored_answers_are_read_by_another_connection(tmp_path):
    path = tmp_path / "deep" / "labels.sqlite"
    first = LabelCache(path)
    assert first.get([b"a"]) == {}
    first.put({b"a": b"1", b"b": b""})
    second = LabelCache(path)  # while the first is still open
    assert second.get([b"a", b"b", b"c"]) == {b"a": b"1", b"b": b""}
    second.put({b"a": b"1", b"c": b"3"})
    assert first.get([b"c"]) == {b"c": b"3"}
    first.close()
    second.close()


@pytest.fixture(scope="module")
def left_by_a_kill(tmp_path_factory):
    """Return the folder of a cache whose process was killed."""
    folder = tmp_path_factory.mktemp("killed")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", WRITE_AND_DIE, str(folder / "labels.sqlite")]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    return folder


def test_a_kill_loses_nothing_that_was_stored(left_by_a_kill, tmp_path):
    shutil.copytree(left_by_a_kill, tmp_path, dirs_exist_ok=True)
    cache = LabelCache(tmp_path / "labels.sqlite")
    assert cache.get(list(ANSWERS)) == ANSWERS
    cache.close()


@pytest.mark.parametrize("suffix", ["-wal", ""])
def test_a_truncated_file_loses_answers_but_never_returns_wrong_ones(
    left_by_a_kill, tmp_path, suffix
):
    whole = tmp_path / "whole"
    shutil.copytree(left_by_a_kill, whole)
    if not suffix:
        LabelCache(whole / "labels.sqlite").close()  # closing the last connection merges the log
    size, numbers = (whole / f"labels.sqlite{suffix}").stat().st_size, set()
    assert size > 10_000
    for cut in range(0, size, size // 23):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(whole, folder)
        os.truncate(folder / f"labels.sqlite{suffix}", cut)
        try:
            cache = LabelCache(folder / "labels.sqlite")
            found = cache.get(list(ANSWERS))
        except CacheError:
            continue
        assert found.items() <= ANSWERS.items()
        numbers.add(len(found))
        cache.close()
    assert len(numbers) > (5 if suffix else 0)


def test_a_corrupted_record_is_absent(tmp_path):
    path = tmp_path / "labels.sqlite"
    cache = LabelCache(path)
    cache.put({b"a": b"right", b"b": b"right"})
    cache.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET answer = ? WHERE key = ?", (b"wrong", b"a"))
    connection.close()
    cache = LabelCache(path)
    assert cache.get([b"a", b"b"]) == {b"b": b"right"}
    cache.put({b"a": b"again"})
    assert cache.get([b"a"]) == {b"a": b"again"}
    cache.close()


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path):
    cache = LabelCache(tmp_path / "labels.sqlite")
    cache.connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON answers WHEN NEW.key = CAST('b' AS BLOB) "
        "BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
    )
    with pytest.raises(CacheError, match=r"labels\.sqlite \(disk is full\): delete it, or name"):
        cache.put({b"a": b"1", b"b": b"2"})
    assert cache.get([b"a"]) == {}
    cache.close()


def test_another_file_is_no_cache(tmp_path):
    path = tmp_path / "labels.sqlite"
    path.write_text("labels: none\n" * 100)
    with pytest.raises(
        CacheError, match=r"got .*labels\.sqlite \(file is not a database\): delete"
    ):
        LabelCache(path)
    assert path.read_text().startswith("labels: none")
    with pytest.raises(CacheError, match="unable to open database file"):
        LabelCache(tmp_path)
