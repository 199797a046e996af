import json

import pytest

from tests.project.options import EVERYTHING, REGISTRIES, option_names, own_names
from textgen_experiments.command_line.commands import find_command
from textgen_experiments.command_line.parse import known_options
from textgen_experiments.command_line.table import (
    TABLE,
    commands_by_name,
    option_of,
    suggestion,
    value_after,
)


def test_the_table_has_all_parts_and_the_options_of_some():
    train = commands_by_name()["train"]
    for kind, registry in REGISTRIES.items():
        assert set(train.parts[f"--{kind}"]) == set(own_names(registry)), "make options"
    words = [*EVERYTHING, "--agent", "skd", "--task", "copy", "--student", "hybrid"]
    assert set(known_options(find_command("train"), words)) == set(train.options_with(words))


@pytest.mark.slow
def test_the_table_has_the_options_that_there_are():
    assert json.loads(TABLE.read_text()) == json.loads(json.dumps(option_names())), "make options"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["--agent"], ""),
        (["--agent", "mle"], "mle"),
        (["--agent=mle", "--agent", "skd"], "skd"),
        (["--agent.k", "3"], None),
    ],
)
def test_the_last_value_of_an_option_counts(words, value):
    assert value_after("--agent", words) == value


@pytest.mark.parametrize(
    ("word", "option"),
    [("--a_b=c_d", "--a-b"), ("--a.b_c", "--a.b-c"), ("-o", None), ("--", None), ("x", None)],
)
def test_an_option_is_named_with_hyphens(word, option):
    assert option_of(word) == option


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("--agnet", ["--agent", "--task"], "perhaps you meant --agent"),
        ("--updates", ["--learner.updates", "--update"], "perhaps you meant --learner.updates"),
        ("--xyzzy", ["--agent", "--task"], ""),
        ("--anything", [], ""),
    ],
)
def test_the_nearest_word_is_suggested(word, known, meant):
    assert suggestion(word, known) == meant
