"""What the README shows runs, and is what the files that it names say."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest

from textgen_agents import AGENTS
from textgen_agents.imitkd import ImitKDFull
from textgen_env import TextGenVectorEnv
from textgen_experiments.command_line.table import commands_by_name, option_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ENVIRONMENT, IMITKD = PYTHON.findall(README)
FIRST = 60  # lines that a screen shows
COMMANDS = re.findall(r"^(?:.* \| )?textgen (.+)$", README, re.MULTILINE)


def test_it_is_short_and_begins_with_its_code():
    lines = README.splitlines(keepends=True)
    assert len(lines) <= 150
    assert PYTHON.findall("".join(lines[:FIRST])) == [ENVIRONMENT, IMITKD]
    assert len([line for line in ENVIRONMENT.splitlines() if line]) == 6
    assert len(IMITKD.splitlines()) == 12


@pytest.mark.parametrize("page", ["README.md", "docs/get_started.md"])
def test_the_example_copies_its_sources(page, monkeypatch):
    earned, step = [], TextGenVectorEnv.step

    def watched(env, actions):
        result = step(env, actions)
        _, reward, terminated, *_ = result
        earned.extend(reward[terminated].tolist())
        return result

    monkeypatch.setattr(TextGenVectorEnv, "step", watched)
    code = PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))[0]
    exec(compile(code, page, "exec"), {})
    assert earned
    assert set(earned) == {1.0}


def test_imitkd_is_that_of_its_file():
    (shown,) = ast.parse(IMITKD).body
    (whole,) = ast.parse(inspect.getsource(ImitKDFull)).body
    parts = [ast.unparse(part) for part in shown.body]
    assert ast.unparse(shown.bases) == ast.unparse(whole.bases)
    assert [part for part in map(ast.unparse, whole.body) if part in parts] == parts


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_the_options_that_are_shown(line):
    name, *words = shlex.split(line)
    options = [option_of(word) for word in words]
    known = commands_by_name()[name].options_with(words)
    assert [each for each in options if each and each not in known] == []


def test_every_algorithm_has_a_row():
    table = README.partition("## The algorithms")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \[(.+?)\]\(docs/algorithms/\w+\.md\) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted([*AGENTS, "ppo"])


def test_pytorch_is_that_of_the_constraints():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert [pin for pin in re.findall(r"torch==\S+", README) if pin not in pins] == []
