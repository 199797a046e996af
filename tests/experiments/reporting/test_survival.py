"""Placeholders, numbers and names that a text keeps."""

from collections import Counter

import pytest

from tests.support.written import written
from textgen_experiments.reporting.survival import name_finder, numbers, placeholders, survival


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello {name}, {0} of {{total}} in ${HOME}", ["{name}", "{0}", "{{total}}", "${HOME}"]),
        ("%s has %(count)d of %1$s, 5 % of it", ["%s", "%(count)d", "%1$s"]),
        ('<b>bold</b> and <a href="x">', ["<b>", "</b>", '<a href="x">']),
        (
            "see https://a.example/x?y=1. Or me@a.example!",
            ["https://a.example/x?y=1", "me@a.example"],
        ),
        ("a < b, c > d, 100%, {", []),
    ],
)
def test_placeholders_are_variables_tags_and_addresses(text, found):
    assert placeholders(text) == Counter(found)


def test_numbers_are_those_outside_placeholders():
    assert numbers("3 of 1,234.5 at 12:30 in {0} by v2.") == Counter(["3", "1,234.5", "12:30", "2"])


def test_names_are_capital_everywhere():
    names = name_finder(["And David went", "he and Saul", "I saw"])
    assert names("And David saw Saul, I said; I'm Éva") == Counter(["David", "Saul", "I'm", "Éva"])


def test_shares_are_of_what_source_and_reference_have_in_common():
    texts = written(
        ["Anna has 2 {x}", "Bob and Anna", "no"],
        sources=["Anna hat 2 {x} und 3", "Robert und Anna", "nein"],
        all_kept=["Anna has 2 {x}", "Anna", ""],
        one_lost=["anna has 2 x", "Anna Anna Bob", "2"],
    )
    kept = survival(texts)
    assert kept["all_kept"] == {
        **{"placeholders": 1, "numbers": 1, "names": 1},
        **{"placeholders_asked": 1, "numbers_asked": 1, "names_asked": 2},
    }
    assert kept["one_lost"]["placeholders"] == 0
    assert kept["one_lost"]["numbers"] == 1
    assert kept["one_lost"]["names"] == 0.5


def test_nothing_to_keep_is_a_gap():
    assert survival(written(["one"], mle=["1"]))["mle"]["names"] is None
