"""Parts of a source that its text must keep as they are: placeholders, numbers and names."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import regex

from textgen_experiments.reporting.schema import Json
from textgen_experiments.reporting.written_texts import WrittenTexts

PLACEHOLDER = regex.compile(
    r"""\{\{[^{}\s]+\}\} | \$?\{[^{}\s]*\}       # {{name}}, {0}, ${name}
    | %\(\w+\)[sdif] | %\d*\$?[sdif]\b          # %(name)s, %s, %1$d
    | </?[A-Za-z][^<>]*>                        # tags
    | (?:https?://|www\.)\S*[\w/] | [\w.+-]+@[\w-]+\.[\w.]*\w""",
    regex.VERBOSE,
)
IN_DIGITS = regex.compile(r"\d+(?:[.,:]\d+)*")
LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}'\u2019-]*")

Items = Counter[str]


def placeholders(text: str) -> Items:
    """Count the variables, tags and addresses of a text."""
    return Counter(PLACEHOLDER.findall(text))


def numbers(text: str) -> Items:
    """Count the numbers in digits outside placeholders, with what separates their digits."""
    return Counter(IN_DIGITS.findall(PLACEHOLDER.sub(" ", text)))


def name_finder(references: Sequence[str]) -> Callable[[str], Items]:
    """Return a function that counts the words of a text that look like names.

    These begin with a capital letter and have at least two letters, and no reference has them in
    lower case.
    """
    known = {word for text in references for word in LETTERS.findall(text)}

    def names(text: str) -> Items:
        words = LETTERS.findall(PLACEHOLDER.sub(" ", text))
        return Counter(
            word
            for word in words
            if word[0].isupper() and len(word) > 1 and word.lower() not in known
        )

    return names


def survival(texts: WrittenTexts) -> dict[str, Json]:
    """Return the shares that each system keeps of what source and reference have in common.

    An item that the reference does not keep, such as a name with another spelling in its language,
    is not asked for.

    Returns:
        For each system and kind of item the share in [0, 1], None without items, and under
        "KIND_asked" the number of items.
    """
    finders = {
        "placeholders": placeholders,
        "numbers": numbers,
        "names": name_finder(texts.references),
    }
    asked = {
        kind: [find(s) & find(r) for s, r in zip(texts.sources, texts.references, strict=True)]
        for kind, find in finders.items()
    }
    return {
        system: {
            name: value
            for kind, find in finders.items()
            for name, value in _kept_of(kind, asked[kind], map(find, written)).items()
        }
        for system, written in texts.systems.items()
    }


def _kept_of(kind: str, asked: Sequence[Items], found: Iterable[Items]) -> Json:
    """Return the share of the items asked for that are found in the same pair, and their number."""
    number = sum(map(Counter.total, asked))
    kept = sum((ours & theirs).total() for ours, theirs in zip(asked, found, strict=True))
    return {kind: kept / number if number else None, f"{kind}_asked": number or None}
