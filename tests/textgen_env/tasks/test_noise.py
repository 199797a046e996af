from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.noise import noisy, with_noisy_sources
from textgen_env.tasks.task import Pair, encode
from textgen_env.tokenizers.subword import Tokenizer

TEXT = " ".join(f"ab{'c' * (n % 7)}ä, {n}" for n in range(400))
BYTES = Tokenizer.train([], vocab_size=259)


@given(st.text())
def test_without_noise_a_text_stays(text):
    words = " ".join(text.split())
    assert noisy(words, 0.0) == words


@given(st.text(), st.floats(0, 1))
def test_letters_are_dropped_or_move_and_all_else_stays(text, share):
    text = " ".join(text.split())
    once = noisy(text, share)
    assert once == noisy(text, share)
    assert Counter(once) <= Counter(text)
    rest, rest_of_noisy = (
        "".join(c for c in each if not (c.isalpha() or c.isspace())) for each in (text, once)
    )
    assert rest_of_noisy == rest


def test_a_letter_that_is_hit_is_dropped_or_swapped_and_the_last_one_is_dropped():
    words = ["".join(pair) for pair in permutations("abcde", 2)]
    written = [noisy(word, 1.0) for word in words]
    assert all(after in ("", word[::-1]) for word, after in zip(words, written, strict=True))
    assert {len(after) for after in written} == {0, 2}
    assert noisy("a 1 b, c", 1.0) == "1 ,"


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_the_share_of_letters_that_are_hit(share):
    """Count hits on letters that all differ from their neighbors, so that each hit is seen."""
    words = ["".join(chr(0x4E00 + (50 * n + k)) for k in range(50)) for n in range(300)]
    hit = letters = 0
    for word in words:
        written = noisy(word, share)
        hit += len(word) - len(written)  # dropped
        hit += sum(a > b for a, b in pairwise(written))  # swapped
        letters += len(word)
    # A swap takes two letters: one draw for both, so that share s hits s / (1 + s / 2) of them.
    assert hit / letters == pytest.approx(share / (1 + share / 2), rel=0.1)


@pytest.fixture
def clean_task():
    task = copy_task(
        CopyConfig(30, min_length=4, max_length=9, num_train=50, num_validation=9, num_test=9)
    )
    return replace(task, tokenizer=BYTES, max_source_length=40, max_target_length=40)


def test_the_expert_reads_what_was_there_before(clean_task):
    task = with_noisy_sources(clean_task, 0.5)
    for split in ("train", "validation", "test"):
        for pair, clean in zip(getattr(task, split), getattr(clean_task, split), strict=True):
            assert pair.expert_source == clean.source
            assert pair.reference == clean.reference
            assert pair.source == noisy(clean.source, 0.5)
    assert sum(pair.source != pair.expert_source for pair in task.test) > 5
    assert task.tokenizer is clean_task.tokenizer


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_limit_rises_to_the_longest_source_of_all_splits(clean_task, split):
    word, other = "abcdefghij", "abcdefghijk"
    tokenizer = Tokenizer.train([word, other] * 9, 300)
    splits = {name: [Pair(word, word)] for name in ("train", "validation", "test")}
    splits[split] = [Pair(f"{word} {other}", word)]
    task = replace(clean_task, tokenizer=tokenizer, max_source_length=3, **splits)
    assert encode(splits[split], task).source.shape == (1, 3)
    noise = with_noisy_sources(task, 0.3)
    longest = encode(getattr(noise, split), noise).source.shape[1]
    assert noise.max_source_length == longest > 3
    assert with_noisy_sources(replace(task, max_source_length=99), 0.3).max_source_length == 99


def test_the_noise_does_not_depend_on_the_unicode_form(clean_task):
    noisy_sources = []
    for form in ("NFC", "NFD"):
        text = normalize(form, "S\u00e4tze \u00fcber Gr\u00f6\u00dfe")
        pairs = [Pair(text, "r")]
        task = replace(clean_task, train=pairs, validation=pairs, test=pairs, tokenizer=BYTES)
        noisy_sources.append(with_noisy_sources(task, 0.5).train[0].source)
    assert noisy_sources[0] == noisy_sources[1] != "S\u00e4tze \u00fcber Gr\u00f6\u00dfe"
