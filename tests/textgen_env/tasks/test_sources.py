"""Sources without references: which come in, how they are encoded, and how many are taken."""

import unicodedata
from collections import Counter
from dataclasses import replace

import pytest

from textgen_env.tasks.noise import with_noisy_sources
from textgen_env.tasks.prompts import with_expert_prompts
from textgen_env.tasks.sources import apart_from, text_key, unseen_sources
from textgen_env.tasks.splits import make_task
from textgen_env.tasks.task import (
    DataError,
    Limits,
    Pair,
    TextTask,
    encode,
    keep_pairs,
    references_of,
)
from textgen_env.tasks.train_subset import take_train_pairs, take_train_sources, train_subset
from textgen_env.tokenizers.subword import Tokenizer

WORDS = Tokenizer.from_words(list("abcdefghijkl"))
SPLITS = {
    "train": [Pair("a", "b"), Pair("b", "c"), Pair("c", "d")],
    "validation": [Pair("d", "a")],
    "test": [Pair("e", "a", "f")],
}


def alone(*texts):
    return [Pair(text, None) for text in texts]


def task_with(*texts, splits=SPLITS, tokenizer=WORDS, max_tokens=4):
    splits = {**splits, "sources": alone(*texts)}
    return make_task(
        "x", splits, tokenizer, vocab_size=300, max_tokens=max_tokens, dropped=Counter()
    )


def test_sources_come_after_the_pairs_and_those_of_pairs_are_set_aside():
    task = task_with("g", "b", "h i", "a")
    assert task.train == [*SPLITS["train"], *alone("g", "h i")]
    assert task.repeated == tuple(alone("b", "a"))
    assert task.dropped == {}


def test_without_sources_nothing_changes():
    task = make_task("x", SPLITS, WORDS, vocab_size=0, max_tokens=4, dropped=Counter())
    assert task == TextTask("x", WORDS, *SPLITS.values(), 4, 4, {})
    assert task_with() == task


@pytest.mark.parametrize("text", ["d", " D ", "e", "f", "F"])
def test_what_validation_and_test_hold_is_no_source(text):
    """Neither what the student reads there nor what the expert does."""
    task = task_with(text, "g")
    assert task.train == [*SPLITS["train"], *alone("g")]
    assert task.dropped == {"sources of validation or test": 1}


def test_a_source_whose_expert_reads_a_held_out_text_is_none():
    dropped, held_out = Counter(), [Pair("d", "a")]
    sources = [Pair("noise", None, "d"), Pair("other", None, "g")]
    assert unseen_sources(sources, held_out, dropped) == sources[1:]
    assert dropped == {"sources of validation or test": 1}


def test_each_source_is_kept_once_and_long_ones_are_counted():
    task = task_with("g h", "g  H", "g h", "i", "a b c d e")
    assert task.train[3:] == alone("g h", "i")
    assert task.dropped == {"sources given twice": 2, "over 4 tokens": 1}


def test_a_source_whose_pair_is_too_long_is_learned_from():
    splits = {**SPLITS, "train": [Pair("a", "b"), Pair("g", "a b c d e")]}
    task = task_with("g", "a", splits=splits)
    assert (task.train, task.repeated) == ([Pair("a", "b"), *alone("g")], tuple(alone("a")))


def test_texts_are_the_same_whatever_their_form():
    text = "Gr\u00fcne \u00c4pfel"
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert len({text_key(each) for each in (*forms, forms[1].upper(), f" {text}\t")}) == 1
    assert text_key(text) != text_key("Grune Apfel")
    new, repeated = apart_from(alone("Stra\u00dfe"), alone("STRASSE", "Gasse"))
    assert (new, repeated) == (alone("Gasse"), alone("STRASSE"))


def test_sources_alone_make_a_task_and_its_tokenizer():
    splits = {**SPLITS, "train": []}
    task = task_with(*["hello world"] * 2, splits=splits, tokenizer=None, max_tokens=9)
    assert task.train == alone("hello world")
    assert [len(row) for row in task.tokenizer.encode(["hello", " world"])] == [1, 1]
    with pytest.raises(DataError, match="x: the train split must hold at least one pair, got none"):
        task_with(splits=splits)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_scores_need_references(split):
    with pytest.raises(DataError, match=f"{split} split must have a reference, got 1 without: put"):
        replace(task_with(), **{split: [Pair("a", "b"), Pair("c", None)]})
    with pytest.raises(ValueError, match="got none for number 2: leave sources"):
        references_of([Pair("a", "b"), Pair("c", None)])


def test_an_example_without_a_reference_has_no_end_token():
    pairs = [Pair("a", "b c"), Pair("b c", None), Pair("c", "")]
    examples = encode(pairs, task_with())
    assert examples.reference.tolist() == [[4, 5, 2], [0, 0, 0], [2, 0, 0]]
    assert examples.has_reference(WORDS.special).tolist() == [True, False, True]
    only = encode(pairs[1:2], task_with())
    assert only.source.tolist() == [[4, 5, 2]]
    assert only.reference.tolist() == [[0]]


@pytest.mark.parametrize(
    ("pair", "objection"),
    [
        (Pair("a b c", None), None),
        (Pair("", None), "empty"),
        (Pair("a", None, " "), "empty"),
        (Pair("a b c d", None), "over 3 words"),
    ],
)
def test_limits_look_at_the_source_alone(pair, objection):
    limits, dropped = Limits(max_words=3, length_ratio=(0.9, 1.1)), Counter()
    assert keep_pairs([pair], limits, dropped) == ([pair] if objection is None else [])
    assert dropped == ({} if objection is None else {objection: 1})


def test_pairs_that_are_left_out_give_their_sources_back():
    """Sources of pairs that are not taken are learned from, if they were given without too."""
    task = task_with("g", "a", "b", "c")
    taken = take_train_pairs(task, 1)
    (pair,) = taken.train[:1]
    others = [text for text in "abc" if text != pair.source]
    assert taken.train == [pair, *alone("g"), *alone(*others)]
    assert taken.repeated == tuple(alone(pair.source))
    assert take_train_pairs(task, 3).repeated == task.repeated


def test_numbers_of_pairs_and_of_sources_are_taken_apart():
    task = task_with(*"ghijkl")
    assert train_subset(task, None, None) is task
    both = train_subset(task, 2, 3)
    assert both.train[:2] == take_train_pairs(task, 2).train[:2]
    assert [pair.reference for pair in both.train[2:]] == [None] * 3
    fewer = take_train_sources(task, 2)
    assert fewer.train[:3] == task.train[:3]
    assert fewer.train[3:] == both.train[2:4]


def test_more_than_there_is_cannot_be_taken():
    task = task_with("g", "h")
    with pytest.raises(ValueError, match=r"train_sources must be between 1 and 2, .* of x, got 3"):
        take_train_sources(task, 3)
    with pytest.raises(ValueError, match=r"train_pairs must be between 1 and 3, .* of x, got 5"):
        take_train_pairs(task, 5)
    with pytest.raises(ValueError, match=r"train_sources must be None without sources .* got 1"):
        take_train_sources(task_with(), 1)


def test_views_are_made_of_all_sources():
    """Those that are set aside too: they may be taken in later."""
    task = task_with("g h", "a")
    noisy = with_noisy_sources(task, 1.0)
    assert [pair.expert_source for pair in (*noisy.train[3:], *noisy.repeated)] == ["g h", "a"]
    prompted = with_expert_prompts(task, "say {source}")
    views = [pair.expert_source for pair in (*prompted.train[3:], *prompted.repeated)]
    assert views == ["say g h", "say a"]
    assert {pair.reference for pair in (*noisy.train[3:], *prompted.repeated)} == {None}
