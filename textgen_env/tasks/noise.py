"""Noise on the sources of the student, while the expert reads the clean text.

It stands for the errors of whatever made the student's source from the expert's: a recognizer of
speech or of handwriting. Real errors are of words that sound or look alike; these are of letters.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from unicodedata import normalize

from textgen_env.tasks.task import Pair, TextTask, text_hash


def with_noisy_sources(task: TextTask, share: float) -> TextTask:
    """Return `task` with letters of all sources dropped or swapped; the expert's stay clean.

    The pairs and the tokenizer are the same as before. Noise takes more tokens, so the limit of the
    source rises to the length of the longest one.

    Args:
        task: with clean sources.
        share: probability that a letter is hit, in [0, 1].
    """
    train, validation, test, repeated = (
        [_noisy_pair(pair, share) for pair in pairs]
        for pairs in (task.train, task.validation, task.test, task.repeated)
    )
    longest = _longest([*train, *validation, *test, *repeated], task)
    return replace(
        task,
        train=train,
        validation=validation,
        test=test,
        max_source_length=max(task.max_source_length, longest),
        repeated=tuple(repeated),
    )


def noisy(text: str, share: float) -> str:
    """Return `text` with letters dropped or swapped with the next one, always the same ones.

    Each letter is hit with probability `share`: with even odds it is swapped with the letter after
    it, which is then hit no more, or dropped; always the latter at the end of a word.

    Args:
        text: words separated by spaces.
        share: in [0, 1].
    """
    random, written, place = Random(text_hash(text)), [], 0
    while place < len(text):
        letter, following = text[place], text[place + 1 : place + 2]
        place += 1
        if not letter.isalpha() or random.random() >= share:
            written.append(letter)
        elif following.isalpha() and random.random() < 0.5:
            written += following, letter
            place += 1
    return " ".join("".join(written).split())


def _noisy_pair(pair: Pair, share: float) -> Pair:
    composed = normalize("NFC", pair.source)  # so that an accent is hit with its letter
    return Pair(noisy(composed, share), pair.reference, pair.expert_view)


def _longest(pairs: Sequence[Pair], task: TextTask) -> int:
    """Return the number of tokens of the longest source, its end token included."""
    return max(map(len, task.tokenizer.encode([pair.source for pair in pairs]))) + 1
