"""The command that a run began with."""

import json
import shlex
import sys

import pytest

from textgen_agents.mle import MLE
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.runs.command import this_command
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.resume import start_or_resume


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/somewhere/bin/textgen", "train", "--agent", "mle"], "textgen train --agent mle"),
        (["/else/textgen_env/__main__.py", "demo"], "python -m textgen_env demo"),
        (["mine.py", "a b", "$HOME"], "mine.py 'a b' '$HOME'"),
    ],
)
def test_it_is_what_a_shell_reads(monkeypatch, words, command):
    monkeypatch.setattr(sys, "argv", words)
    assert this_command() == command
    assert shlex.split(this_command())[-len(words) + 1 :] == words[1:]


def test_a_run_keeps_the_command_that_began_it(tmp_path, monkeypatch):
    words = ["textgen", "train", "--output", "a run"]
    monkeypatch.setattr(sys, "argv", words)
    experiment = Experiment(task=CopyConfig(), teacher=None, agent=MLE(), precision="float32")
    start_or_resume(experiment, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", [*words, "--again"])
    start_or_resume(experiment, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["command"]
    assert shlex.split(kept) == words
