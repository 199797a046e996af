import subprocess
import sys
from dataclasses import is_dataclass

import pytest

from textgen_experiments.command_line.commands import (
    BENCHMARKS,
    COMMANDS,
    find_command,
    with_hyphen,
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_has_its_options_and_its_function(command):
    assert is_dataclass(command.load_options())
    assert callable(command.load_function())
    default, words = command.load_defaults([])
    assert isinstance(default, command.load_options())
    assert words == []


def test_a_benchmark_may_be_two_words():
    for which in BENCHMARKS:
        assert find_command(with_hyphen(["benchmark", which, "x"])[0])
    assert with_hyphen(["benchmark", "./decode"]) == ["benchmark", "./decode"]
    assert find_command("nothing") is None


PROGRAM = """
import sys
from textgen_experiments import cli
from textgen_experiments.command_line.commands import COMMANDS
for command in COMMANDS:
    if command.name != "benchmark-env":  # which times Stable-Baselines3
        command.load_function()
assert "torch" in sys.modules
assert "matplotlib" not in sys.modules
"""


@pytest.mark.slow
def test_no_command_imports_what_draws_before_it_draws():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
