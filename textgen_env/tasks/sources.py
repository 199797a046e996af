"""Sources without references: training texts of which nothing but the source is known.

Agents learn from them by what a teacher writes or says. They are let in by one rule: none that
stands in validation or test, each once, and none beside a training pair of the same source. Two
texts are the same here whatever their case, their white space and their Unicode form.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from textgen_env.tasks.task import Pair

SOURCES = "sources"  # their name beside those of the splits


def unseen_sources(
    sources: Sequence[Pair], held_out: Sequence[Pair], dropped: Counter[str]
) -> list[Pair]:
    """Return the sources that are not held out, each once; count the others in `dropped`.

    Args:
        sources: pairs without references.
        held_out: pairs of validation and test. A source is held out if it, or what the expert reads
            in its place, is a source or an expert's view there.
        dropped: pairs left out so far, by reason.
    """
    if not sources:
        return []
    seen_by_tests = {key for pair in held_out for key in _keys(pair)}
    kept: dict[str, Pair] = {}
    for pair in sources:
        if seen_by_tests.intersection(_keys(pair)):
            dropped["sources of validation or test"] += 1
        elif text_key(pair.source) in kept:
            dropped["sources given twice"] += 1
        else:
            kept[text_key(pair.source)] = pair
    return list(kept.values())


def apart_from(pairs: Sequence[Pair], sources: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return the sources that no pair has, and those that some pair has, each in their order."""
    if not sources:
        return [], []
    known = {text_key(pair.source) for pair in pairs}
    new, repeated = [], []
    for source in sources:
        (repeated if text_key(source.source) in known else new).append(source)
    return new, repeated


def text_key(text: str) -> str:
    """Return the form in which texts are the same that differ in case, space or Unicode form."""
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def _keys(pair: Pair) -> tuple[str, str]:
    return text_key(pair.source), text_key(pair.expert_view)
