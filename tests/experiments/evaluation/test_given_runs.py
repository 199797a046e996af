from pathlib import Path

import pytest

from textgen_experiments.evaluation.compare_settings import SettingsOptions, compare_settings
from textgen_experiments.evaluation.given_runs import without_own_files
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.resume import start_or_resume

OWN = ("plan.jsonl", "report.html", "results.json", "tables.md", "train.log")


def test_files_of_the_program_are_left_out_beside_folders(tmp_path, capsys):
    for name in (*OWN, "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "run").mkdir()
    missing = tmp_path / "missing" / "results.json"
    found = without_own_files([*sorted(tmp_path.iterdir()), missing])
    assert [path.name for path in found] == ["notes.txt", "run", "results.json"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"left out, as no runs: {', '.join(str(tmp_path / name) for name in OWN)}"


def test_a_file_alone_is_left_to_the_command(tmp_path, capsys):
    (tmp_path / "report.html").touch()
    assert without_own_files([tmp_path / "report.html"]) == (tmp_path / "report.html",)
    assert without_own_files([Path("run")]) == (Path("run"),)
    assert not capsys.readouterr().err


def test_a_command_reads_the_runs_and_no_other_file(tmp_path, capsys):
    start_or_resume(Experiment(), tmp_path / "run")
    (tmp_path / "report.html").touch()
    compare_settings(SettingsOptions(tuple(sorted(tmp_path.iterdir()))))
    assert "learner.updates" in capsys.readouterr().out
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match=r"notes\.txt"):
        compare_settings(SettingsOptions(tuple(sorted(tmp_path.iterdir()))))
