"""The tokenizer of a pretrained model, behind the interface that tasks use.

It is one of the `transformers` library (the extra `hf`), which is imported only to load it. What
stands around a source, and where padding comes from, is told to the model as `Conventions`, so that
a model needs no tokenizer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from textgen_env.types import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"  # a text of one piece in every tokenizer, or at least of few


@dataclass(frozen=True)
class Conventions:
    """What a model must know of its tokenizer.

    Attributes:
        special: padding, start and end; the start is padding's id, for it is only a sign that a
            text begins: what the model reads there is its own affair.
        vocab_size: V.
        prefix: ids that stand before every source.
        suffix: ids that stand after it, in place of the end token.
        has_padding: whether the model knows the padding's id; if not, it is the last one, V - 1,
            and was made up so that the end of a text can be told from what follows.
    """

    special: SpecialTokens
    vocab_size: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    has_padding: bool


class PretrainedTokenizer:
    """Turns text into a pretrained model's token ids and back; a `TextTokenizer`.

    Args:
        backend: a tokenizer of `transformers`.

    Raises:
        ValueError: it has no end token.
    """

    def __init__(self, backend: "PreTrainedTokenizerBase") -> None:
        self.backend: Any = backend  # its ids are declared as all that a configuration may hold
        end, pad = self.backend.eos_token_id, self.backend.pad_token_id
        if end is None:
            raise ValueError("tokenizer must have an end token (eos_token), got none")
        # Padding that is the end or the unknown piece too could not be told from them.
        self._has_padding = pad not in (None, end, self.backend.unk_token_id)
        pad = pad if self._has_padding else len(backend)
        self.special = SpecialTokens(pad=pad, start=pad, end=end)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the tokenizer in `folder`, as `save` or `transformers` wrote it; nothing is fetched.

        Raises:
            ImportError: `transformers` is not installed, or what it needs for this tokenizer.
            OSError: there is none.
            ValueError: it cannot be read.
        """
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True))

    def save(self, path: Path) -> None:
        """Write the tokenizer as `transformers` reads it: `path`, and other files beside it."""
        self.backend.save_pretrained(str(path.parent))

    @property
    def vocab_size(self) -> int:
        """V, the number of pieces, special ones and a made-up padding included."""
        return max(len(self.backend), self.special.pad + 1)

    @property
    def pieces(self) -> Mapping[str, int]:
        """The id of each piece."""
        return self.backend.get_vocab()

    @property
    def conventions(self) -> Conventions:
        """What a model must know."""
        bare, framed = (self._ids(framed, text=[PROBE])[0] for framed in (False, True))
        before = next(
            place for place in range(len(framed)) if framed[place : place + len(bare)] == bare
        )
        return Conventions(
            special=self.special,
            vocab_size=self.vocab_size,
            prefix=tuple(framed[:before]),
            suffix=tuple(framed[before + len(bare) :]),
            has_padding=self._has_padding,
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each source text, without what stands around it."""
        return self._ids(text=list(texts)) if texts else []

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each target text, which some tokenizers cut otherwise, without its end."""
        return self._ids(text_target=list(texts)) if texts else []

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Text of each row of ids, up to its first end token; special pieces are left out."""
        pad, _, end = self.special
        cut = [row[: row.index(end)] if end in row else row for row in map(list, rows)]
        kept = [[token for token in row if token != pad] for row in cut]
        return [text.strip() for text in self.backend.batch_decode(kept, skip_special_tokens=True)]

    def _ids(
        self,
        framed: bool = False,
        *,
        text: list[str] | None = None,
        text_target: list[str] | None = None,
    ) -> list[list[int]]:
        """Ids of either kind of texts; a special piece that a text spells is plain text."""
        encoded = self.backend(
            text=text,
            text_target=text_target,
            add_special_tokens=framed,
            split_special_tokens=True,
            truncation=False,
            return_attention_mask=False,
        )
        return encoded["input_ids"]
