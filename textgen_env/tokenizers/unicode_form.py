"""The Unicode normalization form that a tokenizer writes.

Most tokenizers normalize what they encode, so that a model can write one form only, while a file
may hold another. The form is seen from what a tokenizer makes of a few letters, because its
settings differ from library to library.
"""

from typing import Literal
from unicodedata import normalize

from textgen_env.tokenizers.subword import TextTokenizer

UnicodeForm = Literal["NFC", "NFD", "NFKC", "NFKD"]

ACCENTED_LETTERS = "éüйガ가"  # composed ones of several scripts, for vocabularies of one script
LIGATURE = "ﬁ"  # two letters under compatibility


def unicode_form(tokenizer: TextTokenizer) -> UnicodeForm | None:
    """Return the form that `tokenizer` writes; None if it writes all, or none of the letters."""
    for letter in ACCENTED_LETTERS:
        composed, decomposed = [
            _round_trip(tokenizer, text) == text
            for text in (normalize("NFC", letter), normalize("NFD", letter))
        ]
        if composed != decomposed:
            is_compatible = _round_trip(tokenizer, LIGATURE) == normalize("NFKC", LIGATURE)
            if composed:
                return "NFKC" if is_compatible else "NFC"
            return "NFKD" if is_compatible else "NFD"
    return None


def _round_trip(tokenizer: TextTokenizer, text: str) -> str | None:
    """Return what becomes of `text`; None if a tokenizer of words does not know it."""
    try:
        (decoded,) = tokenizer.decode(tokenizer.encode_targets([text]))
    except (ValueError, StopIteration):  # the second where texts end in padding, refused later
        return None
    return decoded
