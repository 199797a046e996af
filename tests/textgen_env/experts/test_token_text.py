"""How a tokenizer's pieces look in a text, and which of them a text goes on with."""

import pytest

from textgen_env.experts.token_text import TokenText, is_text
from textgen_env.tokenizers.subword import Tokenizer

TEXTS = ["the house is red", "the houses there", "Ein Haus, schön!", "red  red"]


@pytest.fixture(scope="module")
def pieces():
    """Of bytes and a few pairs of them."""
    return TokenText(Tokenizer.train(TEXTS * 3, 280))


def spelled(pieces, text):
    """`text` put together piece by piece."""
    row, whole = [], 0
    while True:
        before = pieces.texts([row[:whole]])[0]
        if before == text:
            return row
        row.append(pieces.next(before, row[whole:], text[len(before) :]))
        if not pieces.texts([row])[0].endswith("\N{REPLACEMENT CHARACTER}"):
            whole = len(row)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_put_together_of_its_pieces(pieces, text):
    row = spelled(pieces, text)
    assert pieces.tokenizer.decode([row]) == [text]
    assert len(row) <= len(pieces.tokenizer.encode([text])[0]) + 1


def test_spaces_stay(pieces):
    row = pieces.tokenizer.encode(["the house"])[0]
    begins = [pieces.texts([row[:stop]])[0] for stop in range(len(row) + 1)]
    assert begins[0] == ""
    assert begins[-1] == "the house"
    assert all("the house".startswith(begin) for begin in begins)
    space = pieces.tokenizer.pieces["Ġ"]
    assert pieces.texts([[*row, space]]) == ["the house "]


def test_the_longest_piece_that_fits_comes_next(pieces):
    known = pieces.tokenizer.pieces
    assert {"Ġthe", "Ġhouse"} <= set(known)
    assert pieces.next("", [], "the") == known["Ġthe"]
    assert pieces.next("red", [], " the house") == known["Ġthe"]
    assert pieces.next("red", [], " houseboat") == known["Ġhouse"]
    assert pieces.next("red", [], " zzz") == known["Ġ"]
    assert pieces.next("re", [], "zzz") == known["z"]


def test_a_character_is_written_byte_by_byte():
    pieces = TokenText(Tokenizer.train(["a b c"], 259))
    first, second = (pieces.tokenizer.pieces[piece] for piece in ("Ã", "¶"))  # of an ö
    assert pieces.next("sch", [], "ön") == first
    assert pieces.next("sch", [first], "ön") == second
    assert pieces.next("sch", [second], "ön") == first  # those bytes begin something else
    assert pieces.texts([[second]]) != ["ö"]


def test_pieces_may_be_words_or_characters():
    words = TokenText(Tokenizer.from_words(["one", "two"]))
    one, two = words.tokenizer.encode(["one two"])[0]
    assert words.texts([[], [one], [one, two]]) == ["", "one", "one two"]
    assert words.next("one", [], " two") == two
    assert words.next("", [], "two") == two


@pytest.mark.parametrize("look", ["", " ", "a\N{REPLACEMENT CHARACTER}"])
def test_nothing_to_be_seen_is_no_text(look):
    assert not is_text(look)
    assert is_text(look.replace("\N{REPLACEMENT CHARACTER}", "") + "b")


def test_a_tokenizer_without_letters_is_refused():
    with pytest.raises(ValueError, match="must have a piece of letters or digits"):
        TokenText(Tokenizer.from_words(["-", "+"]))
