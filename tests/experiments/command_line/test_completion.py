"""What the Tab key offers, asked directly and through the shells."""

import os
import shutil
import subprocess
import sys

import pytest

from textgen_agents import AGENTS
from textgen_experiments.command_line.completion import SCRIPTS, completions


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([], ["demo", "train", "evaluate"]),
        (["ev"], ["evaluate"]),
        (["train", "--agent", ""], sorted(AGENTS)),
        (["train", "--agent", "imitkd_s"], ["imitkd_star", "imitkd_star_full"]),
        (["train", "--agent", "skd", "--agent.k"], ["--agent.k"]),
        (["train", "--task", "copy", "--task.num-w"], ["--task.num-words"]),
        (["train", "--device", "c"], ["cpu", "cuda"]),
        (["generate", "model", "--pre"], ["--precision"]),
        (["generate", "model", "--precision", "i"], ["int8"]),
        (["benchmark", "decode", "--eng"], ["--engines"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_commands_options_and_values_are_offered(words, offered):
    found = completions(words)
    assert found[: len(offered)] == offered
    assert all(each.startswith(words[-1]) for each in found if words)


@pytest.mark.parametrize(
    "words", [["nothing", "--a"], ["train", "--output", "r"], ["generate", "runs/"], ["zzz"]]
)
def test_where_a_file_may_follow_nothing_is_offered(words):
    assert completions(words) == []


def test_options_of_other_parts_are_not_offered():
    assert "--agent.k" not in completions(["train", "--agent."])
    assert "--agent.beta.final" in completions(["train", "--schedule", "linear", "--agent."])


@pytest.fixture
def environment(tmp_path):
    """Return the environment of a shell in which `textgen` is a program."""
    program = tmp_path / "textgen"
    main = "from textgen_experiments.program import main; main()"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{main}' \"$@\"\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


PRESS_TAB = {
    "bash": (
        ["bash", "--norc", "-c"],
        'eval "$(textgen completion bash)"; COMP_WORDS=(textgen {words}); '
        'COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _textgen; printf "%s\\n" "${{COMPREPLY[@]}}"',
    ),
    "zsh": (
        ["zsh", "-f", "-c"],
        "compdef() {{ }}; compadd() {{ shift; print -l -- $@ }}; _files() {{ print a file }}; "
        'eval "$(textgen completion zsh)"; words=(textgen {words}); CURRENT=$#words; _textgen',
    ),
}


def pressed(shell, words, environment):
    """Return what a shell offers after these words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command, script = PRESS_TAB[shell]
    done = subprocess.run(
        [*command, script.format(words=words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_offers_the_same(shell, environment):
    assert pressed(shell, "train --task copy --agent seqk", environment) == ["seqkd", "seqkd_full"]
    assert pressed(shell, "train --agent skd --agent.k", environment) == ["--agent.k"]
    assert pressed(shell, "evalu", environment) == ["evaluate"]


@pytest.mark.parametrize(("shell", "files"), [("bash", [""]), ("zsh", ["a file"])])
def test_a_shell_is_left_to_offer_files(shell, files, environment):
    assert pressed(shell, "generate run", environment) == files
