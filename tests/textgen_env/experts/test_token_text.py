"""Exact text of tokens, and the next token that spells a text."""

import pytest

from textgen_env.experts.token_text import INCOMPLETE, TokenText, is_visible
from textgen_env.tokenizers.subword import Tokenizer

TEXTS = ["the house is red", "the houses there", "Ein Haus, schön!", "red  red"]


@pytest.fixture(scope="module")
def token_text():
    """Return the text of tokens that are bytes and a few pairs of them."""
    return TokenText(Tokenizer.train(TEXTS * 3, 280))


def spell(token_text, text):
    """Return `text` in tokens chosen one by one."""
    row, whole = [], 0
    while True:
        before = token_text.decode([row[:whole]])[0]
        if before == text:
            return row
        row.append(token_text.next_token(before, row[whole:], text[len(before) :]))
        if not token_text.decode([row])[0].endswith(INCOMPLETE):
            whole = len(row)


@pytest.mark.parametrize("text", TEXTS)
def test_next_tokens_spell_the_text(token_text, text):
    row = spell(token_text, text)
    assert token_text.tokenizer.decode([row]) == [text]
    assert len(row) <= len(token_text.tokenizer.encode([text])[0]) + 1


def test_spaces_are_kept(token_text):
    row = token_text.tokenizer.encode(["the house"])[0]
    prefixes = [token_text.decode([row[:stop]])[0] for stop in range(len(row) + 1)]
    assert prefixes[0] == ""
    assert prefixes[-1] == "the house"
    assert all("the house".startswith(prefix) for prefix in prefixes)
    space = token_text.tokenizer.pieces["Ġ"]
    assert token_text.decode([[*row, space]]) == ["the house "]


def test_the_longest_token_that_fits_comes_next(token_text):
    known = token_text.tokenizer.pieces
    assert {"Ġthe", "Ġhouse"} <= set(known)
    assert token_text.next_token("", [], "the") == known["Ġthe"]
    assert token_text.next_token("red", [], " the house") == known["Ġthe"]
    assert token_text.next_token("red", [], " houseboat") == known["Ġhouse"]
    assert token_text.next_token("red", [], " zzz") == known["Ġ"]
    assert token_text.next_token("re", [], "zzz") == known["z"]


def test_a_character_is_spelled_byte_by_byte():
    token_text = TokenText(Tokenizer.train(["a b c"], 259))
    first, second = (token_text.tokenizer.pieces[piece] for piece in ("Ã", "¶"))  # of an ö
    assert token_text.next_token("sch", [], "ön") == first
    assert token_text.next_token("sch", [first], "ön") == second
    assert token_text.next_token("sch", [second], "ön") == first  # the bytes of another character
    assert token_text.decode([[second]]) != ["ö"]


def test_tokens_may_be_words():
    words = TokenText(Tokenizer.from_words(["one", "two"]))
    one, two = words.tokenizer.encode(["one two"])[0]
    assert words.decode([[], [one], [one, two]]) == ["", "one", "one two"]
    assert words.next_token("one", [], " two") == two
    assert words.next_token("", [], "two") == two


@pytest.mark.parametrize("text", ["", " ", "a" + INCOMPLETE])
def test_spaces_and_incomplete_characters_are_not_visible(text):
    assert not is_visible(text)
    assert is_visible(text.replace(INCOMPLETE, "") + "b")


def test_a_tokenizer_without_letters_is_refused():
    with pytest.raises(ValueError, match="must have a token of letters or digits"):
        TokenText(Tokenizer.from_words(["-", "+"]))
