"""Subword tokenizers, trained here with the `tokenizers` library, and their interface.

Ids 0, 1 and 2 are padding, start and end. Encoding never yields them, not even for a text that
spells them; the task adds them. Decoding stops at the first end token. Byte-level pair encoding
represents every string, so that no token is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from textgen_env.types import SpecialTokens

SPECIAL_PIECES = ("<pad>", "<s>", "</s>")
NUM_BYTES = 256


class TextTokenizer(Protocol):
    """Interface of tokenizers for tasks, environments and reports."""

    @property
    def special(self) -> SpecialTokens:
        """Token ids of padding, start and end."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens, including special tokens."""
        ...

    @property
    def pieces(self) -> Mapping[str, int]:
        """Token id of each piece."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each source text, without start and end."""
        ...

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each target text, without start and end."""
        ...

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids up to its end token, without special tokens."""
        ...

    def save(self, path: Path) -> None:
        """Write the tokenizer to `path`, with additional files beside it if needed."""
        ...


def same_pieces(one: TextTokenizer, other: TextTokenizer) -> bool:
    """Return True if both tokenizers give every token id the same meaning."""
    return one.special == other.special and one.pieces == other.pieces


def check_ids(tokenizer: TextTokenizer) -> None:
    """Check that the ids of a tokenizer are those from 0 to V - 1, as a damaged file's need not be.

    Raises:
        ValueError: an id is outside.
    """
    largest = max(tokenizer.pieces.values(), default=0)
    if largest >= tokenizer.vocab_size:
        raise ValueError(f"ids must be below {tokenizer.vocab_size}, their number, got {largest}")


class Tokenizer:
    """`TextTokenizer` of subwords or words.

    Args:
        backend: a `tokenizers.Tokenizer` whose first three pieces are `<pad>`, `<s>`, `</s>`. It is
            changed to encode these as plain text where a text spells them.

    Raises:
        ValueError: the first three pieces are others.
    """

    special: SpecialTokens = SpecialTokens()

    def __init__(self, backend: Backend) -> None:
        pieces = tuple(backend.id_to_token(index) for index in range(len(SPECIAL_PIECES)))
        if pieces != SPECIAL_PIECES:
            raise ValueError(f"the first pieces must be {SPECIAL_PIECES}, got {pieces}")
        backend.encode_special_tokens = True  # "</s>" in a text is four characters, not its end
        self.backend = backend

    def __reduce__(self) -> tuple[type[Self], tuple[Backend]]:
        """Return the constructor and its argument, because a pickled backend loses its settings."""
        return type(self), (self.backend,)

    def __eq__(self, other: object) -> bool:
        """Return True if both split and join every text alike."""
        return isinstance(other, Tokenizer) and self.backend.to_str() == other.backend.to_str()

    def __hash__(self) -> int:
        """Return a number that equal tokenizers share."""
        return hash(self.backend.to_str())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4000) -> Self:
        """Learn byte-level pair merges (Sennrich et al. 2016, arXiv:1508.07909) from `texts`.

        Args:
            texts: lines of text; sources and targets together for a joint vocabulary.
            vocab_size: number of tokens, including 3 special tokens and 256 bytes; there are fewer
                if `texts` has no more pairs to merge.

        Raises:
            ValueError: `vocab_size` leaves no room for the bytes.
        """
        smallest = NUM_BYTES + len(SPECIAL_PIECES)
        if vocab_size < smallest:
            raise ValueError(f"vocab_size must be at least {smallest}, got {vocab_size}")
        backend = Backend(models.BPE())
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_PIECES),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def from_words(cls, words: Sequence[str]) -> Self:
        """Return a tokenizer of words separated by spaces, for synthetic tasks."""
        vocabulary = {piece: index for index, piece in enumerate((*SPECIAL_PIECES, *words))}
        backend = Backend(models.WordLevel(vocabulary, unk_token=SPECIAL_PIECES[0]))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(list(SPECIAL_PIECES))  # so that decoding leaves them out
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a tokenizer that `save` wrote.

        Raises:
            FileNotFoundError: `path` does not exist.
            ValueError: the file holds no tokenizer.
        """
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer must be an existing file, got {path}")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            raise ValueError(f"tokenizer must be a file that save wrote, got {path}") from error
        return cls(backend)

    def save(self, path: Path) -> None:
        """Write the tokenizer to `path` as JSON."""
        self.backend.save(str(path))

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens, including special tokens."""
        return self.backend.get_vocab_size()

    @property
    def pieces(self) -> Mapping[str, int]:
        """Token id of each piece."""
        return self.backend.get_vocab()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without start and end.

        Raises:
            ValueError: a text has a word that is not among those of `from_words`.
        """
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        for text, encoding, row in zip(texts, encodings, rows, strict=True):
            if min(row, default=len(SPECIAL_PIECES)) < len(SPECIAL_PIECES):
                index = next(index for index, value in enumerate(row) if value in self.special)
                start, stop = encoding.offsets[index]
                raise ValueError(
                    f"texts must consist of the tokenizer's words, got {text[start:stop]!r}"
                )
        return rows

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text; sources and targets are encoded alike."""
        return self.encode(texts)

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids up to its end token, without special tokens."""
        truncated = [list(row[: _index_of(row, self.special.end)]) for row in rows]
        texts = self.backend.decode_batch(truncated, skip_special_tokens=True)
        return [text.strip() for text in texts]


def _index_of(row: Sequence[int], token: int) -> int:
    """Return the position of the first `token` in `row`, or the row's length."""
    return next((index for index, value in enumerate(row) if value == token), len(row))
