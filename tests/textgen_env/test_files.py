"""Files that are written whole, with the mode of new files, and the error when they cannot be."""

import os
import signal
import stat
import subprocess
import sys
from errno import ENOSPC
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import textgen_env.models.storage
from textgen_agents.training.checkpoint import save_atomically
from textgen_env.files import WriteError, remove_leftovers, write_atomically
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_experiments.models.export import new_folder
from textgen_experiments.runs.folder import write_text

SMALL = RecurrentConfig(vocab_size=12, width=8)


def write_export(path):
    with new_folder(path) as written:
        save_file({"x": torch.ones(1000)}, written / "weights")


def write_model(path):
    task = copy_task(CopyConfig(8, num_train=4, num_validation=4, num_test=4))
    save_model(SMALL.build(None), path.with_suffix(""), task.tokenizer)


WRITERS = {
    "checkpoint": lambda path: save_atomically(path, {"x": torch.ones(1000)}, {}),
    "text": lambda path: write_text(path, "ä" * 4000),
    "model": write_model,
    "export": write_export,
}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def umask():
    """Set the umask of this process for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@writers
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_the_mode_is_what_the_umask_says(write, mask, mode, umask, tmp_path):
    umask(mask)
    write(tmp_path / "x.file")
    assert {stat.S_IMODE(path.stat().st_mode) for path in files_in(tmp_path)} == {mode}


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from textgen_env.files import write_atomically

def half(path):
    path.with_name(".tmpAbCdEf").write_bytes(b"half")  # as safetensors names it
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), half)
"""


def test_what_a_kill_leaves_is_removed_by_the_next_write(tmp_path):
    path = tmp_path / "folder" / "x.safetensors"
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
        assert ended.returncode == -signal.SIGKILL
    assert len(files_in(tmp_path)) == 2
    assert not path.exists()
    save_atomically(path, {"x": torch.ones(3)}, {})
    assert list(path.parent.iterdir()) == [path]


SAFETENSORS = (2).to_bytes(8, "little") + b'{"a":'
LEFT = {
    "x.json.partial/": None,
    "y.json.partial/y.json": b"half",
    "z.json.partial/z.json.mode": b"",
    "v.safetensors.partial/.tmpAbCdE1": SAFETENSORS,
    "w.safetensors.partial": b"half",
    ".tmpAbCdEf": SAFETENSORS,
    ".tmpGhIjKl": b"",
}
NOT_OURS = {
    "notes.partial/x": b"the user's",  # beside no file of this name
    "x.safetensors.partial/x.safetensors": b"the first write is not done",
    "u.json.partial/notes": b"the user's",
    ".tmpMnOpQr": b"the user's",
    ".tmpSessions": SAFETENSORS,
    "tmpAbCdEf": SAFETENSORS,
}
WRITTEN = ("u.json", "v.safetensors", "w.safetensors", "x.json", "y.json", "z.json")


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)


def test_what_kills_left_is_removed_from_a_folder_and_nothing_else(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    fill(outside, {"kept": SAFETENSORS})
    fill(folder, LEFT | NOT_OURS | dict.fromkeys(WRITTEN, b"old"))
    (folder / ".tmpStUvWx").symlink_to(outside / "kept")
    (folder / "linked.json").write_bytes(b"old")
    (folder / "linked.json.partial").symlink_to(outside)
    remove_leftovers(folder)
    kept = {str(path.relative_to(folder)) for path in files_in(folder)}
    assert kept == {*NOT_OURS, *WRITTEN, ".tmpStUvWx", "linked.json"}
    assert (folder / "linked.json.partial").is_symlink()
    assert not (folder / "x.json.partial").exists()
    assert files_in(outside)
    remove_leftovers(tmp_path / "missing")


def raising(error):
    def fail(*arguments, **named):
        del arguments, named
        raise error

    return fail


FULL = {
    "Python": OSError(ENOSPC, "No space left on device"),
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
    "tokenizers": Exception("No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_is_one_error_that_names_file_bytes_and_remedy(error, tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(WriteError, match="No space left on device") as caught:
        write_atomically(path, raising(error), 12345)
    for part in (str(path), "12,345 bytes", "the same command goes on"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.read_text() for file in files_in(tmp_path)] == ["old"]


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_model_on_a_full_disk_is_the_same_error(error, tmp_path, monkeypatch):
    monkeypatch.setattr(textgen_env.models.storage, "save_file", raising(error))
    with pytest.raises(WriteError, match=r"model must be written with [\d,]+ bytes"):
        write_model(tmp_path / "model.x")
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_the_disks_stays_as_it_is(tmp_path):
    with pytest.raises(SafetensorError, match="no such type"):
        write_atomically(tmp_path / "x", raising(SafetensorError("no such type")))


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from tests.textgen_env.test_files import WRITERS
from textgen_env.files import WriteError

resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    WRITERS[sys.argv[1]](Path(sys.argv[2]))
except WriteError as error:
    sys.stdout.write(str(error))
"""


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_has_no_room_is_one_line(kind, tmp_path):
    command = [sys.executable, "-c", LIMITED, kind, str(tmp_path / "x.file")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "File too large" in ended.stdout
    assert len(ended.stdout.splitlines()) == 1
    assert not files_in(tmp_path)


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_made_is_one_error(place):
    with pytest.raises(WriteError, match=f"{place}/config.json must be written"):
        write_text(Path(place) / "config.json", "{}")
