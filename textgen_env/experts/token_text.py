"""Text of token sequences with all its spaces, to move text between two tokenizers.

A tokenizer's `decode` strips both ends of a text, and with them the spaces that belong to tokens.
`TokenText` therefore decodes a marker token of letters beside the tokens and removes its text.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

from textgen_env.tokenizers.subword import TextTokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoded from bytes that are only a part of a character


class TokenText:
    """Exact text of a tokenizer's tokens, and the next token that spells a given text.

    Args:
        tokenizer: one with a token of letters or digits.

    Raises:
        ValueError: it has no such token.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self._tokens = sorted(set(tokenizer.pieces.values()) - set(tokenizer.special))
        self._marker, self._marker_text, self._marker_suffix = self._find_marker()

    def _find_marker(self) -> tuple[int, str, str]:
        """Return a token of letters, its text alone, and its text behind another token."""
        for token in self._tokens:
            one, two = self.tokenizer.decode([[token], [token, token]])
            if one.isalnum() and two in (one + one, f"{one} {one}"):
                return token, one, two[len(one) :]
        raise ValueError("tokenizer must have a token of letters or digits; this one has none")

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each row of tokens, including the spaces at its end."""
        rows = list(rows)
        marked = self.tokenizer.decode([*row, self._marker] for row in rows)
        return [
            text.removesuffix(self._marker_suffix) if row else ""
            for row, text in zip(rows, marked, strict=True)
        ]

    @cached_property
    def _token_of_text(self) -> dict[str, int]:
        """Each token by its text behind other text, without tokens that are no text alone."""
        marked = self.decode([self._marker, token] for token in self._tokens)
        texts = (text.removeprefix(self._marker_text) for text in marked)
        pairs = zip(texts, self._tokens, strict=True)
        return {text: token for text, token in pairs if text and is_visible(text)}

    @cached_property
    def _max_length(self) -> int:
        return max(map(len, self._token_of_text))

    def next_token(self, before: str, partial: Sequence[int], text: str) -> int:
        """Return the first token that spells `text` after `before`.

        Within a text it is the longest token that fits: the tokenizer's own choice would depend on
        the beginning of the word, which may be tokenized differently already.

        Args:
            before: the text so far, of whole characters.
            partial: tokens after `before` that are a part of a character. If `text` begins with
                another character, its first token is returned.
            text: the continuation of `before`, not empty.
        """
        if before and not partial:
            for length in range(min(self._max_length, len(text)), 0, -1):
                if text[:length] in self._token_of_text:
                    return self._token_of_text[text[:length]]
        tokens = self._encode_after(before, text)
        continues = len(tokens) > len(partial) and tokens[: len(partial)] == list(partial)
        return tokens[len(partial) if continues else 0]

    def _encode_after(self, before: str, text: str) -> list[int]:
        """Return the tokenizer's own tokens of `text`, at the beginning or behind letters."""
        if before:
            letters, longer = self.tokenizer.encode_targets(
                [self._marker_text, self._marker_text + text]
            )
            if longer[: len(letters)] == letters:
                return longer[len(letters) :]
        return self.tokenizer.encode_targets([text])[0]


def is_visible(text: str) -> bool:
    """Return True if a text has more than spaces and no incomplete character."""
    return bool(text.strip()) and INCOMPLETE not in text
