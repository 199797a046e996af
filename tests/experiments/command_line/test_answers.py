"""Answers of the program that need no PyTorch, and what it says of words that it does not know."""

import os
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from textgen_experiments.command_line import answers, table
from textgen_experiments.command_line.answers import answered, in_options, no_option
from textgen_experiments.command_line.commands import COMMANDS
from textgen_experiments.command_line.table import commands_by_name

SECONDS_OF_CPU = 0.3
PROGRAM = """
import sys
from textgen_experiments.program import main
try:
    main()
finally:
    slow = {"torch", "matplotlib", "numpy", "tyro", "textgen_env"} & set(sys.modules)
    assert not slow, slow
"""
AT_ONCE = {
    ("--version",): (0, "textgen "),
    ("--help",): (0, "benchmark-peers"),
    (): (0, "usage: textgen COMMAND"),
    ("train", "--output", "x", "--agnet", "mle"): (2, "perhaps you meant --agent (see textgen"),
    ("train", "--output", "x", "--learner.updats=3"): (2, "perhaps you meant --learner.updates"),
    ("generate", "--beem-size", "3", "x"): (2, "meant --beam-size (see textgen generate "),
    ("train", "--output", "x", "--learner.updates", "ten"): (
        2,
        "be a whole number, got 'ten' (see",
    ),
    ("train", "--learner.ema=high"): (2, "--learner.ema must be a number or None, got 'high' (see"),
    ("train", "--agent", "imitkd_ful"): (
        2,
        " names, got 'imitkd_ful': perhaps you meant imitkd_full ",
    ),
    ("train", "--metric", "blue"): (
        2,
        "bleu, chrf, exact, reference-loss, got 'blue': perhaps you",
    ),
    ("trian",): (2, "trian is no command: perhaps you meant train (see textgen --help)"),
    ("--threads", "0", "train"): (2, "--threads must be at least 1, got 0 (see textgen --help)"),
    ("train", "--device", "cud"): (2, "'cud': perhaps you meant cuda (see textgen --help)"),
    ("report", "--treads", "2"): (2, "perhaps you meant --threads (see textgen report --help)"),
    ("evaluate", "--devise", "cpu"): (2, "perhaps you meant --device (see"),
    ("train", "--quite"): (2, "perhaps you meant --quiet (see"),
    ("--thread", "2"): (2, "--thread is no option before a command: perhaps you meant --threads"),
    ("--output", "x", "train"): (2, "--output is no option before a command (see textgen --help)"),
    ("completion", "bash"): (0, "complete -o default -F _textgen textgen"),
    ("completion", "--help"): (0, "usage: textgen completion {bash,zsh}"),
    ("completion", "fish", "--help"): (0, "usage: textgen completion {bash,zsh}"),
    ("--complete", "train", "--agent", "seqkd_"): (0, "seqkd_full\n"),
}


def seconds_of_cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("words", AT_ONCE, ids=" ".join)
def test_it_answers_at_once_and_imports_nothing_slow(words):
    code, said = AT_ONCE[words]
    begun = seconds_of_cpu()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in (done.stderr if code else done.stdout)
    assert done.stderr.count("\n") == (code == 2)
    assert seconds_of_cpu() - begun < SECONDS_OF_CPU


def test_the_help_names_each_command_with_what_it_does(capsys):
    assert answered(["-h"])
    text = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS:
        assert f" {command.name} {commands_by_name()[command.name].summary} " in text
    for option in ("--plugin", "--threads", "--device", "--quiet", "--version"):
        assert f" {option} " in text


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--output", "x", "--agent", "skd", "--agent.k", "3", "--learner.batch_size=4"],
        ["train", "--agent.k", "3"],  # of another agent: the options themselves say so
        ["train", "--teacher", "http://localhost/v1", "--server.model", "m"],
        ["train", "--plugin", "mine.py", "--agent", "mine", "--agent.surprise", "1"],
        ["train", "--learner.updates", "-3", "--learner.ema", "None", "--learner.seed=1_0"],
        ["train", "--learner.updates", "--agent", "mle"],
        ["train", "--help", "--agnet"],
        ["generate", "--quiet", "model", "--beam-size=3"],
        ["benchmark", "decode", "run", "--rounds", "2"],
        ["benchmark-peers", "--device", "cuda"],
        ["train"],
    ],
)
def test_what_may_be_right_is_left_to_the_command(words):
    assert not answered(words)


def test_a_field_that_is_newer_than_the_table_is_left_to_the_command(tmp_path, monkeypatch):
    words, source = ["train", "--output", "x", "--learner.brand-new", "1"], tmp_path / "config.py"
    source.write_text("class Config:\n    brand_new: int = 1\n")
    monkeypatch.setattr(table, "_sources", lambda: [source])
    written = table.TABLE.stat().st_mtime
    os.utime(source, (written, written))
    with pytest.raises(SystemExit):
        answered(words)
    os.utime(source, (written + 3600, written + 3600))
    assert not answered(words)


def test_a_name_that_may_have_been_registered_is_left_to_the_command(monkeypatch):
    words = ["train", "--agent", "of_another_package", "--agent.surprise", "1"]
    monkeypatch.setattr(table, "_sources", list)
    monkeypatch.setattr(table, "REGISTRY", "not_imported")
    with pytest.raises(SystemExit):
        answered(words)
    points = EntryPoints([EntryPoint("of_another_package", "other:register", "textgen.agents")])
    with monkeypatch.context() as installed:
        installed.setattr(table, "entry_points", lambda: points)
        assert not answered(words)
    monkeypatch.setattr(table, "REGISTRY", "sys")
    assert not answered(words), "the program that calls may have registered it"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--agent.k", "an option of textgen train --agent uncommonsense or --agent skd: see"),
        ("--task.num-words", "an option of textgen train --task copy: see"),
        ("--student.num-heads", "textgen train --student transformer or --student hybrid: see"),
        ("--agent.beta.final", "--schedule"),
        ("--updates", "no option of textgen train: perhaps you meant --learner.updates (see"),
        ("--zzz", "no option of textgen train: see textgen train --help"),
    ],
)
def test_an_option_says_what_it_belongs_to_or_what_it_is_like(option, said):
    known = commands_by_name()["train"].options_with([])
    message = no_option(option, "train", known)
    assert message.startswith(f"{option} is ")
    assert said in message


OPTIONS = ["--student-init", "--agent.k", "--task.seed", "--learner.seed", "--learner.ewc-weight"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("student_init must be given", "--student-init must be given"),
        ("k must be at most 3, got k", "--agent.k must be at most 3, got k"),
        (
            "it needs student_init where ewc_weight is",
            "it needs --student-init where --learner.ewc-weight is",
        ),
        ("seed must be 1", "seed must be 1"),
        ("runs/ewc_weight/x must be a file", "runs/ewc_weight/x must be a file"),
        ("word_kd must have a teacher", "word_kd must have a teacher"),
    ],
)
def test_settings_are_named_by_their_options(message, shown):
    assert in_options(message, OPTIONS) == shown


def test_a_long_message_is_cut(capsys):
    with pytest.raises(SystemExit) as stop:
        answers.fail("x\n" * 9000)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert text.endswith("...\n")
    assert len(text) < 2100
