"""Memory of a process as users see it."""

import mmap
import sys

import pytest
import torch

from textgen_experiments.runs import memory
from textgen_experiments.runs.malloc import return_unused_memory
from textgen_experiments.runs.memory import peak_of_process, process_memory, tell_peak_memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
MIB = 2**20


@linux
def test_the_peak_holds_what_is_no_longer_there():
    before = process_memory("VmRSS")
    with mmap.mmap(-1, 80 * MIB) as block:  # which glibc cannot have held before
        block.write(bytes(80 * MIB))
    assert peak_of_process() >= before + 70
    assert peak_of_process() >= process_memory("VmRSS")


@linux
def test_unused_memory_is_returned():
    blocks = [torch.ones(16 * 1024 // 4) for _ in range(6_000)]  # below glibc's limit for maps
    kept = blocks[::50]
    held = process_memory("VmRSS")
    del blocks
    return_unused_memory()
    assert process_memory("VmRSS") < held - 50
    assert all(bool((each == 1).all()) for each in kept)


def test_where_the_system_does_not_tell_nothing_is_printed(monkeypatch, capsys):
    def missing(entry):
        raise OSError(entry)

    monkeypatch.setattr(memory, "process_memory", missing)
    assert peak_of_process() == 0
    tell_peak_memory()
    assert not capsys.readouterr().err


def test_the_peak_is_a_line(monkeypatch, capsys):
    monkeypatch.setattr(memory, "process_memory", {"VmHWM": 1234.4}.__getitem__)
    tell_peak_memory()
    assert capsys.readouterr().err == "peak memory: 1,234 MiB\n"
