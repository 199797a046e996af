import json

import pytest

from tests.project.options import option_names
from textgen_experiments.command_line.table import TABLE, option_of, suggestion, value_after


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
