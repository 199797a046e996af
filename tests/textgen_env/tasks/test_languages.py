"""Lengths in words and words of letters, in scripts with spaces and without."""

import pytest

from textgen_env.tasks.languages import (
    check_language,
    count_words,
    letter_words,
    primary_language,
    split_words,
)
from textgen_env.tasks.task import Limits, Pair


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a - b, c.", 4),
        ("Größe über alles", 3),
        ("привет, мир", 2),
        ("한국어 문장", 2),
        ("八六零一。", 4),
        ("他有 3 只 cats。", 5),
        ("東京へ行く。", 5),
        ("。", 1),
    ],
)
def test_words_are_counted_between_spaces_or_as_characters(text, count):
    assert count_words(text) == count
    if count and count == len(text.split()):
        assert [piece.rstrip() for piece in split_words(text)] == text.split()
    assert "".join(split_words(text)) == text


def test_words_of_letters_keep_their_marks():
    assert letter_words("हिन्दी u\u0308ber a_b") == ["हिन्दी", "u\u0308ber", "a", "b"]
    assert letter_words("八六。abc九") == ["八", "六", "abc", "九"]


def test_limits_count_the_same_words():
    """Check that four digits and their numerals have a ratio of one, and not of a quarter."""
    limits = Limits(max_words=4, length_ratio=(0.9, 1.1))
    assert limits.objection(Pair("8 6 0 1", "八六零一。")) is None
    assert limits.objection(Pair("8 6 0 1 5", "八六零一五")) == "over 4 words"


def test_a_code_of_a_language_is_checked():
    check_language("target_language", None)
    check_language("target_language", "zh-Hant")
    assert primary_language("ZH_Hant") == "zh"
    with pytest.raises(ValueError, match=r'must be a code such as "de".*got \'Chinese!\''):
        check_language("target_language", "Chinese!")
