"""Tokenizers of pretrained models, with the interface that tasks use.

The tokenizer itself is of the `transformers` library (the extra `hf`), which is imported only to
load one. `Conventions` tells a model about special tokens and the frame of a source, so that a
model needs no tokenizer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from textgen_env.tokenizers.folder_check import check_is_data
from textgen_env.types import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"  # a short text whose tokens show what the tokenizer adds around a source


@dataclass(frozen=True)
class Conventions:
    """Conventions of a tokenizer that its model must know.

    Attributes:
        special: ids of padding, start and end. The start has the id of padding: it only marks the
            beginning of a text, and the model replaces it by its own tokens.
        vocab_size: V.
        prefix: ids before every source.
        suffix: ids after every source, in place of the end token.
        has_padding: True if the model knows the padding token. Otherwise padding is V - 1, an id
            that was added so that padding differs from the end token.
    """

    special: SpecialTokens
    vocab_size: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    has_padding: bool


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let `transformers` write nothing but errors; what it warns of while loading is checked."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class PretrainedTokenizer:
    """`TextTokenizer` of a pretrained model.

    Args:
        backend: a tokenizer of `transformers`.

    Raises:
        ValueError: the tokenizer has no end token.
    """

    def __init__(self, backend: "PreTrainedTokenizerBase") -> None:
        self.backend: Any = backend  # its ids have too wide a declared type
        end, pad = self.backend.eos_token_id, self.backend.pad_token_id
        if end is None:
            raise ValueError("tokenizer must have an end token (eos_token), got None")
        # Padding with the id of another token would be indistinguishable from it.
        self._has_padding = pad not in (None, end, self.backend.unk_token_id)
        pad = pad if self._has_padding else len(backend)
        self.special = SpecialTokens(pad=pad, start=pad, end=end)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the tokenizer that `save` or `transformers` wrote to `folder`, without downloads.

        Raises:
            ImportError: `transformers`, or a package that this tokenizer needs, is not installed.
            OSError: the folder has no tokenizer.
            UnsafeFolderError: the folder brings or names code.
            ValueError: the tokenizer cannot be read.
        """
        from transformers import AutoTokenizer

        check_is_data(folder)
        with quiet_transformers():
            backend = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        return cls(backend)

    def save(self, path: Path) -> None:
        """Write the tokenizer in the format of `transformers`: `path` and files beside it."""
        self.backend.save_pretrained(str(path.parent))

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens, including special tokens and an added padding token."""
        return max(len(self.backend), self.special.pad + 1)

    @property
    def pieces(self) -> Mapping[str, int]:
        """Token id of each piece."""
        return self.backend.get_vocab()

    @property
    def conventions(self) -> Conventions:
        """Conventions that the tokenizer's model must know."""
        bare, framed = (self._ids(framed, text=[PROBE])[0] for framed in (False, True))
        places = range(len(framed))
        before = next((at for at in places if framed[at : at + len(bare)] == bare), None)
        if before is None:
            raise ValueError(
                f"a source must keep its tokens {bare} with others around, got {framed}"
            )
        if max(framed) >= self.vocab_size:
            raise ValueError(
                f"ids around a source must be below {self.vocab_size}, got {max(framed)}"
            )
        return Conventions(
            special=self.special,
            vocab_size=self.vocab_size,
            prefix=tuple(framed[:before]),
            suffix=tuple(framed[before + len(bare) :]),
            has_padding=self._has_padding,
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each source text, without the prefix and suffix of sources."""
        return self._ids(text=list(texts)) if texts else []

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each target text, without the end token.

        Some tokenizers have another vocabulary for targets than for sources.
        """
        return self._ids(text_target=list(texts)) if texts else []

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids up to its end token, without special tokens."""
        pad, _, end = self.special
        ended = [row[: row.index(end)] if end in row else row for row in map(list, rows)]
        unpadded = [[token for token in row if token != pad] for row in ended]
        texts = self.backend.batch_decode(unpadded, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _ids(
        self,
        framed: bool = False,
        *,
        text: list[str] | None = None,
        text_target: list[str] | None = None,
    ) -> list[list[int]]:
        """Return the token ids of sources or targets; special tokens spelled in a text are text."""
        encoded = self.backend(
            text=text,
            text_target=text_target,
            add_special_tokens=framed,
            split_special_tokens=True,
            truncation=False,
            return_attention_mask=False,
        )
        return encoded["input_ids"]
