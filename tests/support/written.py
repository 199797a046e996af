"""Texts of systems that were written by hand, for the tests of the report."""

from collections import Counter

from textgen_experiments.reporting.written_texts import WrittenTexts, words_of


def written(references, *, sources=None, training=(), language=None, **systems):
    """Return texts with these references, as those of a task with these training references."""
    occurrences = Counter(word for text in training for word in words_of(text))
    return WrittenTexts(sources or references, references, systems, occurrences, language)
