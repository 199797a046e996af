"""What the pieces of a tokenizer look like in a text: for putting one tokenizer's into another's.

`decode` strips the ends of a text, where a piece's own space may be. So letters are decoded behind
what is looked at, and taken off again.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

from textgen_env.tokenizers.subword import TextTokenizer

NO_TEXT = "\N{REPLACEMENT CHARACTER}"  # stands for bytes that are only a part of a character


class TokenText:
    """The pieces of a tokenizer, and texts of them with all their spaces.

    Args:
        tokenizer: with a piece of letters or digits.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids = sorted(set(tokenizer.pieces.values()) - set(tokenizer.special))
        self._letters, self._look, self._behind = self._piece_of_letters()

    def _piece_of_letters(self) -> tuple[int, str, str]:
        """Such a piece, how it looks alone, and how it looks behind another."""
        for token in self._ids:
            one, two = self.tokenizer.decode([[token], [token, token]])
            if one.isalnum() and two in (one + one, f"{one} {one}"):
                return token, one, two[len(one) :]
        raise ValueError("tokenizer must have a piece of letters or digits, got none")

    def texts(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The text of each row of ids, spaces at its end included."""
        rows = list(rows)
        longer = self.tokenizer.decode([*row, self._letters] for row in rows)
        return [
            text.removesuffix(self._behind) if row else ""
            for row, text in zip(rows, longer, strict=True)
        ]

    @cached_property
    def _tokens(self) -> dict[str, int]:
        """Each piece by how it looks inside a text, those aside that are no text by themselves."""
        texts = self.texts([self._letters, token] for token in self._ids)
        looks = (text.removeprefix(self._look) for text in texts)
        found = zip(looks, self._ids, strict=True)
        return {look: token for look, token in found if look and is_text(look)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._tokens))

    def next(self, before: str, begun: Sequence[int], text: str) -> int:
        """The piece to be written next where `text`, not empty, is to come after `before`.

        Inside a text it is the longest that fits: what the tokenizer itself would choose depends on
        how the word began, and that was cut by someone else.

        Args:
            before: the text so far.
            begun: pieces after it that are parts of a character; where they are of another one
                than that which `text` begins with, they are written anew.
            text: how it goes on after `before`.
        """
        if before and not begun:
            for length in range(min(self._longest, len(text)), 0, -1):
                if text[:length] in self._tokens:
                    return self._tokens[text[:length]]
        cut = self._cut(before, text)
        more = len(cut) > len(begun) and cut[: len(begun)] == list(begun)
        return cut[len(begun) if more else 0]

    def _cut(self, before: str, text: str) -> list[int]:
        """The tokenizer's own pieces of `text`, at the beginning or behind letters."""
        if before:
            letters, longer = self.tokenizer.encode_targets([self._look, self._look + text])
            if longer[: len(letters)] == letters:
                return longer[len(letters) :]
        return self.tokenizer.encode_targets([text])[0]


def is_text(look: str) -> bool:
    """Whether it has something to be seen, and no part of a character."""
    return bool(look.strip()) and NO_TEXT not in look
