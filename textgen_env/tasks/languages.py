"""Words of texts in any script, and codes of languages.

Scripts without spaces between words have no lengths in words: there each character counts as one.
"""

import regex

_CODE = regex.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*")
_UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}--\p{M}]"  # marks follow
)
_CHARACTER = regex.compile(_UNSPACED, regex.VERSION1)
_LETTER = regex.compile(r"[\p{L}\p{N}]")
_LETTER_WORD = regex.compile(
    rf"{_UNSPACED}\p{{M}}*|(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])+", regex.VERSION1
)
_PIECE = regex.compile(rf"{_UNSPACED}\p{{M}}* ?|(?:(?!{_UNSPACED})[^ ])+ ?", regex.VERSION1)


def count_words(text: str) -> int:
    """Return the number of words between spaces, or of characters where a script has no spaces.

    Punctuation beside such a character is no word of its own.
    """
    words = text.split()
    if text.isascii() or not has_unspaced_script(text):
        return len(words)
    return sum(map(_count_within, words))


def _count_within(word: str) -> int:
    """Return the number of words in a text without spaces."""
    pieces = _CHARACTER.split(word)
    if len(pieces) == 1:
        return 1
    return len(pieces) - 1 + sum(_LETTER.search(piece) is not None for piece in pieces)


def letter_words(text: str) -> list[str]:
    """Return the words of letters and digits, or characters in scripts without spaces."""
    return _LETTER_WORD.findall(text)


def has_unspaced_script(text: str) -> bool:
    """Return True if a character of the text is of a script without spaces between words."""
    return _CHARACTER.search(text) is not None


def split_words(text: str) -> list[str]:
    """Return the words, and characters where there are no spaces, each with the space after it."""
    return _PIECE.findall(" ".join(text.split()))


def primary_language(language: str) -> str:
    """Return the first part of a code of a language, in lower case: "zh" of "zh-Hant"."""
    return regex.split("[-_]", language.lower())[0]


def check_language(argument: str, language: str | None) -> None:
    """Raise `ValueError` unless `language` is None or looks like a code of a language."""
    if language is not None and not _CODE.fullmatch(language):
        raise ValueError(
            f'{argument} must be a code such as "de" or "zh-Hant", or None, got {language!r}'
        )
