import hashlib
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textgen_agents.evaluation.quality import score
from textgen_env.tasks.splits import make_task
from textgen_env.tasks.task import (
    DataError,
    Limits,
    Pair,
    TextTask,
    encode,
    encode_sources,
    hashed_split,
    keep_pairs,
    text_hash,
)
from textgen_env.tasks.train_subset import take_train_pairs
from textgen_env.tokenizers.subword import Tokenizer

WORDS = Tokenizer.from_words(list("abcdefgh"))
PAIRS = [Pair("a", "b"), Pair("c", "d"), Pair("e", "f"), Pair("g", "h")]


def task_of(train, tokenizer=WORDS):
    return TextTask("letters", tokenizer, train, PAIRS[:1], PAIRS[:1], 4, 4, {})


def test_hash_is_the_first_eight_bytes_of_sha256():
    assert text_hash("abc") == 0xBA7816BF8F01CFEA  # FIPS 180-2, appendix B.1: ba7816bf 8f01cfea ...


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_hash_and_split_are_the_same_in_each_unicode_form(text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert len({text_hash(each) for each in [text, *forms]}) == 1
    plain = hashlib.sha256(forms[0].encode()).digest()[:8]  # composed text keeps its split
    assert text_hash(text) == int.from_bytes(plain, "big")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_references_are_scored_in_the_form_that_the_tokenizer_writes(form):
    tokenizer = Tokenizer.train([], vocab_size=259)
    pair = Pair(*[unicodedata.normalize(form, "gr\u00fcn caf\u00e9 \ufb01")] * 2)
    plain = Pair("a", "a")
    task = TextTask("t", tokenizer, [pair], [pair, plain], [pair, pair], 99, 99, {})
    for pairs in (task.validation, task.test):
        references = [each.reference for each in pairs]
        hypotheses = tokenizer.decode(tokenizer.encode_targets(references))
        assert score(hypotheses, references).exact_match == 100
        assert pairs[0].source == pair.source
    assert task.train == [pair]
    assert task.rewritten == (3 if form == "NFD" else 0)
    assert replace(task, name="u").rewritten == task.rewritten


def test_hashed_split_takes_the_hash_modulo_100():
    assert hashed_split("1:6") == "test"  # 0x62325dfc1fc67525 % 100 = 1
    assert hashed_split("abc") == "train"  # 0xba7816bf8f01cfea % 100 = 62


def test_hashed_split_holds_out_a_twentieth_twice():
    count = Counter(hashed_split(str(key)) for key in range(20_000))
    assert set(count) == {"train", "validation", "test"}
    assert count["validation"] == pytest.approx(1000, rel=0.1)
    assert count["test"] == pytest.approx(1000, rel=0.1)


def test_taken_train_pairs_hash_lowest():
    # sha256 of "g\th" begins with 2d, of "a\tb" with 8948, of "e\tf" with 8a7a, of "c\td" with f7.
    assert take_train_pairs(task_of(PAIRS), 3).train == [PAIRS[3], PAIRS[0], PAIRS[2]]


def test_another_draw_takes_other_pairs():
    many = task_of([Pair(str(n), str(-n)) for n in range(400)])
    first, second = (set(take_train_pairs(many, 200, draw).train) for draw in (0, 1))
    assert first == set(take_train_pairs(many, 200).train)
    assert 60 < len(first & second) < 140  # half of each by chance


@given(st.permutations([Pair(str(n), str(-n)) for n in range(8)]), st.integers(1, 8))
def test_taken_train_pairs_are_nested_and_ignore_the_order(pairs, count):
    task = task_of(pairs)
    by_digest = sorted(
        pairs, key=lambda pair: hashlib.sha256("\t".join(pair[:2]).encode()).digest()
    )
    assert take_train_pairs(task, count).train == by_digest[:count]


def test_taking_leaves_the_other_splits_alone():
    task = task_of(PAIRS)
    assert take_train_pairs(task, 1) == replace(task, train=[PAIRS[3]])


@pytest.mark.parametrize("count", [0, -1, 5])
def test_taking_more_than_there_is(count):
    with pytest.raises(ValueError, match=f"must be between 1 and 4, .* letters, got {count}"):
        take_train_pairs(task_of(PAIRS), count)


@pytest.mark.parametrize(
    ("pair", "objection"),
    [
        (Pair("a b c", "a b c"), None),
        (Pair("a b", "a"), None),
        (Pair("a", "a b"), None),
        (Pair("", "a"), "empty"),
        (Pair("a", " \t"), "empty"),
        (Pair("a b c d", "a b c"), "over 3 words"),
        (Pair("a b c", "a b c d"), "over 3 words"),
        (Pair("a b c", "a"), "length ratio outside 0.5 to 2.0"),
        (Pair("a", "a b c"), "length ratio outside 0.5 to 2.0"),
    ],
)
def test_objections(pair, objection):
    assert Limits(max_words=3, length_ratio=(0.5, 2.0)).objection(pair) == objection


def test_no_limits_object_to_empty_sides_only():
    limits = Limits(max_words=None, length_ratio=None)
    assert limits.objection(Pair("a", "a " * 1000)) is None
    assert limits.objection(Pair("a", "")) == "empty"


@pytest.mark.parametrize(
    "values",
    [{"max_words": 0}, {"max_tokens": 1}, {"length_ratio": (2.0, 0.5)}, {"length_ratio": (-1, 1)}],
)
def test_impossible_limits(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} must be .*, got "):
        Limits(**values)


def test_pairs_left_out_are_counted_by_reason():
    dropped = Counter({"empty": 1})
    pairs = [Pair("a", "a"), Pair("", ""), Pair("a b c", "a b c"), Pair("a b", "b a")]
    assert keep_pairs(pairs, Limits(max_words=2), dropped) == [pairs[0], pairs[3]]
    assert dropped == {"empty": 2, "over 2 words": 1}


def test_task_counts_pairs_over_its_tokens():
    splits = {
        "train": [Pair("a b c", "a"), Pair("a", "a b c d"), Pair("a b c d", "a")],
        "validation": [Pair("a", "b")],
        "test": [Pair("b", "a"), Pair("a b c d e", "f")],
    }
    task = make_task("x", splits, WORDS, vocab_size=0, max_tokens=4, dropped=Counter(empty=2))
    assert (task.train, task.test) == ([Pair("a b c", "a")], [Pair("b", "a")])
    assert task.dropped == {"empty": 2, "over 4 tokens": 3}
    assert task.max_source_length == task.max_target_length == 4
    assert encode(task.train, task).source.shape == (1, 4)  # the end token fits


def test_task_trains_a_tokenizer_on_its_training_pairs():
    splits = {"train": [Pair("hello", "world")] * 9, "validation": PAIRS[:1], "test": PAIRS[:1]}
    task = make_task("x", splits, None, vocab_size=300, max_tokens=9, dropped=Counter())
    assert [len(row) for row in task.tokenizer.encode(["hello", "world"])] == [1, 1]
    assert len(task.tokenizer.encode(["other"])[0]) > 1
    splits["train"] = [Pair("hello", "world", "other")] * 9
    task = make_task("x", splits, None, vocab_size=300, max_tokens=9, dropped=Counter())
    assert [len(row) for row in task.tokenizer.encode(["hello", "world", "other"])] == [1, 1, 1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_task_without_a_split(split):
    task = replace(task_of(PAIRS), dropped={"empty": 7})
    with pytest.raises(DataError, match=f"letters: the {split} split .*'empty': 7"):
        replace(task, **{split: []})


def test_encoding_ends_and_pads_each_side():
    pairs = [Pair("a b c", "h"), Pair("d", "g h")]
    examples = encode(pairs, task_of(PAIRS))
    assert examples.source.tolist() == [[3, 4, 5, 2], [6, 2, 0, 0]]
    assert examples.reference.tolist() == [[10, 2, 0], [9, 10, 2]]
    assert examples.source.dtype == examples.reference.dtype == torch.int64


def test_the_experts_view_is_encoded_whatever_its_length():
    pairs = [Pair("a", "h", "b c d e f"), Pair("d c", "g h")]
    examples = encode(pairs, task_of(PAIRS))
    assert examples.source.tolist() == [[3, 2, 0], [6, 5, 2]]
    assert examples.expert_view.tolist() == [[4, 5, 6, 7, 8, 2], [6, 5, 2, 0, 0, 0]]
    same = encode(PAIRS, task_of(PAIRS))
    assert same.expert_view is same.source


def test_the_same_examples_are_taken_however_much_the_student_may_read():
    seen = [Pair("noise", pair.reference, pair.source) for pair in PAIRS]
    for count in range(1, 5):
        taken = take_train_pairs(task_of(seen), count).train
        clean = [Pair(pair.expert_view, pair.reference) for pair in taken]
        assert clean == take_train_pairs(task_of(PAIRS), count).train


def test_encoding_has_limits():
    with pytest.raises(ValueError, match="source must have at most 4 tokens, got 5"):
        encode([Pair("a b c d", "a")], task_of(PAIRS))
    with pytest.raises(ValueError, match="reference must have at most 4 tokens, got 5"):
        encode([Pair("a", "a b c d")], task_of(PAIRS))
    with pytest.raises(ValueError, match="source must hold at least one text, got none"):
        encode([], task_of(PAIRS))


def test_sources_are_encoded_whatever_their_length():
    assert encode_sources(["a", "b c d e f"], WORDS).tolist() == [
        [3, 2, 0, 0, 0, 0],
        [4, 5, 6, 7, 8, 2],
    ]
    assert encode_sources([""], WORDS).tolist() == [[2]]
    with pytest.raises(ValueError, match="source must hold at least one text, got none"):
        encode_sources([], WORDS)
