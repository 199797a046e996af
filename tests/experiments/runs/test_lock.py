import subprocess
import sys

import pytest

from textgen_env.files import WriteError
from textgen_experiments.runs.folder import RunError, contents
from textgen_experiments.runs.lock import locked

HOLD = """
import sys
from pathlib import Path
from textgen_experiments.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Return another process that writes to the folder "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_command_is_refused_until_the_first_is_gone_however_it_ends(holder, tmp_path):
    one_at_a_time = pytest.raises(RunError, match="run must be written by one command at a time")
    with one_at_a_time, locked(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "run"):
        assert contents(tmp_path / "run") == set()


def test_the_lock_leaves_nothing_behind(tmp_path):
    with locked(tmp_path / "a" / "run"):
        pass
    assert not (tmp_path / "a" / "run").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    with pytest.raises(RuntimeError), locked(tmp_path / "run"):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file/run"), locked(tmp_path / "file" / "run"):
        pass
