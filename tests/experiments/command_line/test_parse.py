"""Mistakes in a command's own options, each of which is one line that ends the program."""

import pytest

from textgen_experiments.command_line.parse import parse
from textgen_experiments.command_line.table import commands_by_name

TRAIN = commands_by_name()["train"].options_with(["--agent", "skd", "--task", "text"])
WITHOUT_VALUES = {"-h", "--help", "--diagnostics", "--keep-checkpoint"}
ANY_NUMBER = {"--further-teachers", "--keyed-teachers", "--task.sources", "--learner.frozen"}
TAKE_ONE = sorted(
    option
    for option in TRAIN
    if option not in WITHOUT_VALUES | ANY_NUMBER
    and not option.startswith("--no-")
    and not option.endswith("-indices")
)


def refused(capsys, *words):
    """Return the one line that ends the program."""
    with pytest.raises(SystemExit) as stop:
        parse(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("textgen: ")


@pytest.mark.parametrize("option", TAKE_ONE)
def test_an_option_of_train_without_its_value_is_named(option, capsys):
    words = ["--output", "x", "--agent", "skd", "--task", "text", "--task.train", "x.tsv"]
    if option.startswith("--server."):
        words += ["--server.url", "http://x", "--server.model", "m", "--server.tokenizer", "t"]
    line = refused(capsys, "train", *words, option)
    assert line.startswith(f"{option} must be followed by ")
    assert line.endswith(", got nothing (see textgen train --help)")


def test_options_of_the_kinds_that_a_value_may_lack_are_tried():
    assert {"--output", "--agent", "--student", "--paper", "--task.train", "--sweep"} < {*TAKE_ONE}
    assert len(TAKE_ONE) > 60


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["export"], "PATH (model) and --format"),
        (["export", "x"], "--format"),
        (["serve"], "PATH (model)"),
        (["train"], "--output"),
        (["train", "--output", "x", "--task", "text"], "--task.train"),
        (["train", "--output", "x", "--task=hub"], "--task.path"),
        (
            ["train", "--output", "x", "--teacher", "http://x"],
            "--server.model and --server.tokenizer",
        ),
    ],
)
def test_what_must_be_given_is_named(words, missing, capsys):
    line = refused(capsys, *words)
    assert line == f"{missing} must be given, got none (see textgen {words[0]} --help)"


@pytest.mark.parametrize(("task", "option"), [("text", "--task.train"), ("hub", "--task.path")])
def test_the_help_says_what_a_task_must_be_given(task, option, capsys):
    with pytest.raises(SystemExit):
        parse(["train", "--task", task, "--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    _, _, about = printed.partition(f" {option} ")
    assert "(required)" in about.partition(" --task.")[0]


def test_choices_are_named_in_one_order(capsys):
    line = refused(capsys, "train", "--output", "x", "--label", "best")
    assert line.startswith("--label must be one of None, dense, sampled, top1, top_k, got 'best'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--seeds", "0"], "--seeds must be at least 1, got 0 (see textgen train --help)"),
        (
            ["generate", "x", "--beam-size", "0"],
            "--beam-size must be at least 1, got 0 (see textgen generate --help)",
        ),
    ],
)
def test_a_value_out_of_range_is_named_with_the_help(words, said, capsys):
    assert refused(capsys, *words, *(["--output", "x"] if words[0] == "train" else [])) == said
