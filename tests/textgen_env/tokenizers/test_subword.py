import copy
import pickle
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from textgen_env.tokenizers.subword import NUM_BYTES, SPECIAL_PIECES, Tokenizer

TEXTS = ["the cat sat on the mat", "die Katze saß auf der Matte", "the mat, the cat"] * 3
SUBWORDS = Tokenizer.train(TEXTS, vocab_size=280)
WORDS = Tokenizer.from_words(["w0", "w1", "w10"])

# The library may normalize characters that Python's Unicode tables do not know yet.
anything = st.text(st.characters(exclude_categories=("Cs", "Cn")))


def normalized(text):
    return unicodedata.normalize("NFC", text).strip()


@settings(deadline=None)
@given(st.lists(anything))
def test_decoding_inverts_encoding(texts):
    assert SUBWORDS.decode(SUBWORDS.encode(texts)) == [normalized(text) for text in texts]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL_PIECES, " ", "a", "é", "\u2028", "\n"])).map("".join))
def test_special_tokens_spelled_in_a_text_are_plain_text(text):
    (row,) = SUBWORDS.encode([text])
    assert not set(row) & set(SUBWORDS.special)
    assert SUBWORDS.decode([row]) == [normalized(text)]


@given(st.lists(st.sampled_from(["w0", "w1", "w10"])).map(" ".join))
def test_words_have_one_id_each(text):
    (row,) = WORDS.encode([text])
    assert len(row) == len(text.split())
    assert WORDS.decode([row]) == [text]


def test_word_ids_follow_the_special_ids():
    assert WORDS.encode(["w0 w1 w10"]) == [[3, 4, 5]]
    assert WORDS.vocab_size == 6


@pytest.mark.parametrize("word", ["zz", "w2", "<pad>", "</s>", "w0w1"])
def test_an_unknown_word_is_an_error(word):
    with pytest.raises(ValueError, match=f"must consist of the tokenizer's words, got '{word}'"):
        WORDS.encode(["w0 w1", f"w1 {word} w0"])


def test_rows_do_not_depend_on_their_neighbors():
    assert SUBWORDS.encode(TEXTS[:2]) == [SUBWORDS.encode([text])[0] for text in TEXTS[:2]]


def test_decoding_stops_at_the_end_token_and_omits_special_tokens():
    pad, start, end = WORDS.special
    assert WORDS.decode([[start, 3, 4, end, 5, end, pad], [end, 3], [], [5, pad, pad]]) == [
        "w0 w1",
        "",
        "",
        "w10",
    ]


def test_bytes_that_are_no_character_are_replaced():
    (row,) = SUBWORDS.encode(["ß"])
    assert SUBWORDS.decode([row[:-1]]) == ["\ufffd"]


def test_training_reaches_the_vocabulary_size_and_is_deterministic():
    assert SUBWORDS.vocab_size == 280
    assert Tokenizer.train(TEXTS, vocab_size=280).encode(TEXTS) == SUBWORDS.encode(TEXTS)


def test_training_on_spelled_special_tokens_yields_no_special_id():
    tokenizer = Tokenizer.train(["<pad> <s> </s> <pad></s>"] * 50, vocab_size=400)
    (row,) = tokenizer.encode(["<pad> <s> </s>"])
    assert min(row) >= len(SPECIAL_PIECES)


def test_a_vocabulary_without_room_for_bytes_is_refused():
    smallest = NUM_BYTES + len(SPECIAL_PIECES)
    assert Tokenizer.train([], vocab_size=smallest).vocab_size == smallest
    with pytest.raises(ValueError, match=f"vocab_size must be at least {smallest}, got 10"):
        Tokenizer.train(TEXTS, vocab_size=10)


@pytest.mark.parametrize("tokenizer", [SUBWORDS, WORDS], ids=["subwords", "words"])
def test_a_saved_and_loaded_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode(["w0 w10"]) == tokenizer.encode(["w0 w10"])
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert loaded != Tokenizer.from_words(["w0"])


def test_a_loaded_tokenizer_encodes_special_tokens_as_text(tmp_path):
    SUBWORDS.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(["a</s>"]) == SUBWORDS.encode(["a</s>"])


def test_loading_another_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be an existing file"):
        Tokenizer.load(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be a file that save wrote, got .*broken\.json"):
        Tokenizer.load(tmp_path / "broken.json")


def test_first_pieces_must_be_the_special_ones():
    backend = Backend(models.WordLevel({"a": 0, "<pad>": 1, "b": 2}, unk_token="<pad>"))
    with pytest.raises(ValueError, match=r"first pieces must be .*, got \('a', '<pad>', 'b'\)"):
        Tokenizer(backend)


def test_a_copied_or_pickled_tokenizer_encodes_special_tokens_as_text():
    tokenizer = Tokenizer.train(["some text"], 300)
    expected = tokenizer.encode(["a </s> b"])
    assert copy.deepcopy(tokenizer).encode(["a </s> b"]) == expected
    assert pickle.loads(pickle.dumps(tokenizer)).encode(["a </s> b"]) == expected
