"""Measurements that are kept: once a machine, anew where the file is damaged."""

import json
from dataclasses import dataclass

import pytest
import torch

from textgen_experiments.runs import kept_measurements
from textgen_experiments.runs.kept_measurements import (
    FILE,
    cache_folder,
    machine,
    measured_once,
)


@dataclass(frozen=True)
class Rate:
    """A rate that is kept."""

    seconds: float


class Stopwatch:
    """A measurement that counts how often it is made."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return Rate(float(self.calls))


@pytest.fixture
def watch():
    return Stopwatch()


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FILE


def test_a_machine_is_measured_once_for_each_name(watch):
    assert [measured_once(name, Rate, watch).seconds for name in "aabab"] == [1, 1, 2, 1, 2]


def test_another_version_or_processor_is_another_machine(watch, monkeypatch, tmp_path):
    measured_once("a", Rate, watch)
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert measured_once("a", Rate, watch) == Rate(2.0)
    monkeypatch.setattr(kept_measurements, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(kept_measurements.platform, "processor", lambda: "abacus")
    assert machine() == "abacus, torch 99.0"
    assert measured_once("a", Rate, watch) == Rate(3.0)


DAMAGED = [
    "",
    "[]",
    "{",
    "null",
    "[" * 100_000,
    '{"HERE": 3}',
    '{"HERE": {"a": null}}',
    '{"HERE": {"a": {"seconds": "2"}}}',
    '{"HERE": {"a": {"minutes": 2.0}}}',
    "\udcff",
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_damaged_is_measured_anew_and_kept_again(content, file, watch):
    file.parent.mkdir()
    content = content.replace("HERE", machine())
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert measured_once("a", Rate, watch) == measured_once("a", Rate, watch) == Rate(1.0)
    assert json.loads(file.read_text())[machine()]["a"] == {"seconds": 1.0}


def test_what_other_machines_and_names_have_stays(file, watch):
    file.parent.mkdir()
    file.write_text(json.dumps({"other": {"a": 1}, machine(): {"b": {"seconds": 7.0}}}))
    measured_once("a", Rate, watch)
    kept = json.loads(file.read_text())
    assert kept == {
        "other": {"a": 1},
        machine(): {"a": {"seconds": 1.0}, "b": {"seconds": 7.0}},
    }


def test_a_folder_that_cannot_be_written_is_told(file, watch, capsys):
    file.parent.write_text("a file in the folder's place")
    assert measured_once("a", Rate, watch) == Rate(1.0)
    assert "the measurement is made again next time: " in capsys.readouterr().err


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("TEXTGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "textgen"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "textgen"
