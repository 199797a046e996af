"""Tasks and their configurations: pairs of text in three splits, a tokenizer and length limits.

`encode` alone makes tensors of a task. Each source of text has a file of its own beside this one.
"""

import hashlib
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textgen_env.bounds import check_at_least
from textgen_env.tasks.field_paths import field_paths
from textgen_env.tasks.languages import count_words
from textgen_env.tokenizers.subword import TextTokenizer, same_pieces
from textgen_env.tokenizers.unicode_form import UnicodeForm, unicode_form
from textgen_env.types import Examples, SpecialTokens

SPLITS = ("train", "validation", "test")
HELD_OUT_PERCENT = 5  # of the hashes, for validation and for test each


class DataError(ValueError):
    """Text for a task that is missing, broken or too little."""


class Pair(NamedTuple):
    """One example as text.

    Attributes:
        source: text that the student reads.
        reference: the data set's target; None for a source without one, from which agents learn by
            what a teacher writes or says, and which no text can be compared with.
        expert_source: text that the expert reads, such as a transcript, another version or a
            prompt before the source; None for the source.
    """

    source: str
    reference: str | None
    expert_source: str | None = None

    @property
    def expert_view(self) -> str:
        """Text that the expert reads."""
        return self.source if self.expert_source is None else self.expert_source


def references_of(pairs: Iterable[Pair]) -> list[str]:
    """Return the references of `pairs`.

    Raises:
        ValueError: a pair has none.
    """
    references = []
    for number, pair in enumerate(pairs, 1):
        if pair.reference is None:
            raise ValueError(
                f"pairs must have references to be compared with, got none for number {number}: "
                "leave sources without references to training"
            )
        references.append(pair.reference)
    return references


class Task(Protocol):
    """Anything that the environment can draw examples from."""

    @property
    def name(self) -> str:
        """Short name, for tables and folders."""
        ...

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of both sides."""
        ...

    @property
    def train(self) -> Sequence[Pair]:
        """Pairs of the training split; sources without references may be among them."""
        ...

    @property
    def validation(self) -> Sequence[Pair]:
        """Pairs of the validation split."""
        ...

    @property
    def test(self) -> Sequence[Pair]:
        """Pairs of the test split."""
        ...

    @property
    def max_source_length(self) -> int:
        """S, the longest source in tokens, its end token included."""
        ...

    @property
    def max_target_length(self) -> int:
        """T, the longest target in tokens, its end token included: the episode's length limit."""
        ...


@dataclass(frozen=True)
class TextTask:
    """A task held in memory.

    References of validation and test are compared with what models write. They are held in the
    Unicode normalization form that the tokenizer writes, whatever form they are given in.

    Attributes:
        name: short name, for tables and folders.
        tokenizer: the tokenizer of both sides.
        train: pairs to learn from, and sources without references.
        validation: pairs to choose by, all with references.
        test: pairs to report on, all with references.
        max_source_length: S, in tokens, the end token included.
        max_target_length: T, in tokens, the end token included.
        dropped: how many pairs were left out, by reason.
        rewritten: how many references of validation and test were given in another Unicode form.
        target_language: code of the references' language, by which words are told apart when texts
            are scored; None for one with spaces between words.
        repeated: sources without references that training pairs have too. They are not learned
            from beside those pairs; `train_subset` takes them in for pairs that it leaves out.
    """

    name: str
    tokenizer: TextTokenizer
    train: Sequence[Pair]
    validation: Sequence[Pair]
    test: Sequence[Pair]
    max_source_length: int
    max_target_length: int
    dropped: Mapping[str, int]
    rewritten: int = 0
    target_language: str | None = None
    repeated: Sequence[Pair] = ()

    def __post_init__(self) -> None:
        for split, pairs in zip(SPLITS, (self.train, self.validation, self.test), strict=True):
            if not pairs:
                raise DataError(
                    f"task {self.name}: the {split} split must hold at least one pair, got none "
                    f"(dropped: {dict(self.dropped) or 'none'})"
                )
        for split, pairs in (("validation", self.validation), ("test", self.test)):
            without = sum(pair.reference is None for pair in pairs)
            if without:
                raise DataError(
                    f"task {self.name}: each pair of the {split} split must have a reference, got "
                    f"{without} without: put sources without references into train"
                )
        form = unicode_form(self.tokenizer)
        if form is not None:
            self._rewrite_references(form)

    def _rewrite_references(self, form: UnicodeForm) -> None:
        """Bring the references that are scored to `form`, and count those that were in another."""
        for split, pairs in (("validation", self.validation), ("test", self.test)):
            references = references_of(pairs)
            others = [not unicodedata.is_normalized(form, text) for text in references]
            if any(others):
                rewritten = [
                    pair._replace(reference=unicodedata.normalize(form, text).strip())
                    for pair, text in zip(pairs, references, strict=True)
                ]
                object.__setattr__(self, split, rewritten)
                object.__setattr__(self, "rewritten", self.rewritten + sum(others))


@dataclass(frozen=True)
class TaskConfig(ABC):
    """Configuration of a task; an entry of `TASKS` is one.

    Subclasses are frozen dataclasses whose fields are options of the command line.

    Attributes:
        is_complete: False if the defaults name files that the user is to replace.
    """

    is_complete: ClassVar[bool] = True

    @abstractmethod
    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task.

        Args:
            tokenizer: tokenizer of both sides; None for one of the task's own.

        Raises:
            DataError: the text is missing, broken or too little.
        """

    @property
    def env_settings(self) -> Mapping[str, Any]:
        """Arguments of the environment, `reward` and `noise`, that are the task's own."""
        return {}

    def outside_files(self) -> Mapping[str, Path]:
        """Return the files and folders that `build` reads, by the names that messages give them.

        A run keeps their digests and refuses other content. By default they are the paths in the
        fields, under their own names; a task that finds its files elsewhere returns those.
        """
        return {str(path): path for path in field_paths(self)}

    def outside_digests(self) -> Mapping[str, str]:
        """Return a digest, by name, of each thing that `build` reads and that is no file."""
        return {}


@dataclass(frozen=True)
class Limits:
    """Limits on the pairs that are kept.

    Attributes:
        max_words: longest side, in words separated by spaces, or characters in scripts without
            spaces; None for no limit.
        max_tokens: longest side in tokens, its end token included.
        length_ratio: smallest and largest reference length over source length, in words; None for
            no limit.
    """

    max_words: int | None = None
    max_tokens: int = 128
    length_ratio: tuple[float, float] | None = (0.4, 2.5)

    def __post_init__(self) -> None:
        check_at_least(self, max_words=1, max_tokens=2)
        if self.length_ratio and not 0 <= self.length_ratio[0] <= self.length_ratio[1]:
            raise ValueError(f"length_ratio must be (smallest, largest), got {self.length_ratio}")

    def objection(self, pair: Pair) -> str | None:
        """Return why `pair` is left out by its words, or None if it is kept.

        Of a source without a reference, the ratio is not looked at.
        """
        sides = [count_words(text) for text in pair[:2] if text is not None]
        if not (all(sides) and pair.expert_view.split()):
            return "empty"
        if self.max_words is not None and max(sides) > self.max_words:
            return f"over {self.max_words} words"
        if self.length_ratio and len(sides) == 2:
            smallest, largest = self.length_ratio
            if not smallest <= sides[1] / sides[0] <= largest:
                return f"length ratio outside {smallest} to {largest}"
        return None


KEEP_ANY_RATIO = Limits(length_ratio=None)


def keep_pairs(pairs: Iterable[Pair], limits: Limits, dropped: Counter[str]) -> list[Pair]:
    """Return the pairs within `limits` by their words; count the others in `dropped` by reason."""
    kept = []
    for pair in pairs:
        reason = limits.objection(pair)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(pair)
    return kept


def encode(pairs: Sequence[Pair], task: Task) -> Examples:
    """Return the token ids of `pairs`, each side with its end token, padded to the longest.

    Text that only the expert reads is no part of an observation and may have any length. Where
    there is no reference its row is all padding, without an end token (`Examples.has_reference`).

    Raises:
        ValueError: there is no pair, or a side is longer than the task's limit.
    """
    tokenizer = task.tokenizer
    sources = tokenizer.encode([pair.source for pair in pairs])
    source = _padded("source", sources, task.max_source_length, tokenizer.special)
    references = encode_references(pairs, tokenizer)
    reference = _padded("reference", references, task.max_target_length, tokenizer.special)
    if all(pair.expert_source is None for pair in pairs):
        return Examples(source, reference)
    views = encode_sources([pair.expert_view for pair in pairs], tokenizer)
    return Examples(source, reference, views)


def encode_references(pairs: Sequence[Pair], tokenizer: TextTokenizer) -> list[list[int] | None]:
    """Return the token ids of each reference without its end token; None where there is none."""
    texts = [pair.reference for pair in pairs if pair.reference is not None]
    rows = iter(tokenizer.encode_targets(texts) if texts else ())
    return [None if pair.reference is None else next(rows) for pair in pairs]


def in_tokens_of(tokenizer: TextTokenizer, task: TextTask) -> TextTask:
    """Return `task` in the tokens of another tokenizer, with room for its test pairs.

    Its pairs stay those within the limits in tokens of its own tokenizer. A task that is in these
    tokens already is returned itself.
    """
    if same_pieces(tokenizer, task.tokenizer):
        return task
    views = tokenizer.encode(
        [text for pair in task.test for text in (pair.source, pair.expert_view)]
    )
    references = tokenizer.encode_targets(references_of(task.test))
    return replace(
        task,
        tokenizer=tokenizer,
        max_source_length=max(map(len, views)) + 1,
        max_target_length=max(*map(len, references), task.max_target_length - 1) + 1,
    )


def encode_sources(texts: Sequence[str], tokenizer: TextTokenizer) -> Tensor:
    """Return (B, S) int64 token ids of source texts with their end tokens, padded."""
    rows = tokenizer.encode(texts)
    longest = max((len(row) for row in rows), default=0) + 1
    return _padded("source", rows, longest, tokenizer.special)


def _padded(
    side: str, rows: Sequence[list[int] | None], limit: int, special: SpecialTokens
) -> Tensor:
    """Return the rows with their end tokens, and one of padding for None, in one tensor."""
    if not rows:
        raise ValueError(f"{side} must hold at least one text, got none")
    ended = [torch.tensor([special.pad] if row is None else [*row, special.end]) for row in rows]
    longest = max(map(len, ended))
    if longest > limit:
        raise ValueError(f"{side} must have at most {limit} tokens, got {longest}")
    return pad_sequence(ended, batch_first=True, padding_value=special.pad)


def hashed_split(key: str) -> str:
    """Return the split of the examples that share `key`: 5 % test, 5 % validation, 90 % train."""
    percent = text_hash(key) % 100
    if percent < HELD_OUT_PERCENT:
        return "test"
    return "validation" if percent < 2 * HELD_OUT_PERCENT else "train"


def text_hash(text: str) -> int:
    """Return a 64-bit hash of `text` that is the same in every process and each Unicode form."""
    composed = unicodedata.normalize("NFC", text)
    return int.from_bytes(hashlib.sha256(composed.encode()).digest()[:8], "big")
