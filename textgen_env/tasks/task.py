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
from textgen_env.tokenizers.subword import TextTokenizer, Tokenizer, same_pieces
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
        reference: the data set's target.
        expert_source: text that the expert reads, such as a transcript, another version or a
            prompt before the source; None for the source.
    """

    source: str
    reference: str
    expert_source: str | None = None

    @property
    def expert_view(self) -> str:
        """Text that the expert reads."""
        return self.source if self.expert_source is None else self.expert_source


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
        """Pairs of the training split."""
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
        train: pairs to learn from.
        validation: pairs to choose by.
        test: pairs to report on.
        max_source_length: S, in tokens, the end token included.
        max_target_length: T, in tokens, the end token included.
        dropped: how many pairs were left out, by reason.
        rewritten: how many references of validation and test were given in another Unicode form.
        target_language: code of the references' language, by which words are told apart when texts
            are scored; None for one with spaces between words.
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

    def __post_init__(self) -> None:
        for split, pairs in zip(SPLITS, (self.train, self.validation, self.test), strict=True):
            if not pairs:
                raise DataError(
                    f"task {self.name}: the {split} split must hold at least one pair, got none "
                    f"(dropped: {dict(self.dropped) or 'none'})"
                )
        form = unicode_form(self.tokenizer)
        if form is not None:
            self._rewrite_references(form)

    def _rewrite_references(self, form: UnicodeForm) -> None:
        """Bring the references that are scored to `form`, and count those that were in another."""
        for split, pairs in (("validation", self.validation), ("test", self.test)):
            others = [not unicodedata.is_normalized(form, pair.reference) for pair in pairs]
            if any(others):
                rewritten = [
                    pair._replace(reference=unicodedata.normalize(form, pair.reference).strip())
                    for pair in pairs
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
        """Return why `pair` is left out by its words, or None if it is kept."""
        source, reference = count_words(pair.source), count_words(pair.reference)
        if not (source and reference and pair.expert_view.split()):
            return "empty"
        if self.max_words is not None and max(source, reference) > self.max_words:
            return f"over {self.max_words} words"
        if (
            self.length_ratio
            and not self.length_ratio[0] <= reference / source <= self.length_ratio[1]
        ):
            return f"length ratio outside {self.length_ratio[0]} to {self.length_ratio[1]}"
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


def make_task(
    name: str,
    splits: Mapping[str, Sequence[Pair]],
    tokenizer: TextTokenizer | None,
    *,
    vocab_size: int,
    max_tokens: int,
    max_target_tokens: int | None = None,
    dropped: Counter[str],
) -> TextTask:
    """Return a task of pairs that `keep_pairs` let through.

    A joint tokenizer is trained on the training pairs if none is given. Pairs that are too long in
    tokens are left out and counted in `dropped`.

    Args:
        name: short name of the task.
        splits: pairs of "train", "validation" and "test".
        tokenizer: the tokenizer of both sides, or None to train one.
        vocab_size: pieces of the tokenizer to be trained.
        max_tokens: longest side in tokens, its end token included.
        max_target_tokens: longest reference, where it is to be shorter; None for `max_tokens`.
        dropped: pairs left out so far, by reason.

    Raises:
        DataError: a split is empty.
    """
    if tokenizer is None:
        tokenizer = train_tokenizer(splits["train"], vocab_size)
    limits = max_tokens, max_target_tokens or max_tokens
    kept = {
        split: _within_tokens(pairs, tokenizer, limits, dropped) for split, pairs in splits.items()
    }
    return TextTask(
        name=name,
        tokenizer=tokenizer,
        train=kept["train"],
        validation=kept["validation"],
        test=kept["test"],
        max_source_length=limits[0],
        max_target_length=limits[1],
        dropped=dict(dropped),
    )


def train_tokenizer(pairs: Sequence[Pair], vocab_size: int) -> Tokenizer:
    """Return a joint tokenizer of all texts of `pairs`, of at most `vocab_size` pieces."""
    return Tokenizer.train(
        (text for pair in pairs for text in pair if text is not None), vocab_size
    )


def _within_tokens(
    pairs: Sequence[Pair], tokenizer: TextTokenizer, limits: tuple[int, int], dropped: Counter[str]
) -> list[Pair]:
    sources = tokenizer.encode([pair.source for pair in pairs])
    references = tokenizer.encode_targets([pair.reference for pair in pairs])
    fits = [
        len(source) < limits[0] and len(reference) < limits[1]
        for source, reference in zip(sources, references, strict=True)
    ]
    if not all(fits):
        same = limits[0] == limits[1]
        reason = f"{limits[0]}" if same else f"{limits[0]} source or {limits[1]} target"
        dropped[f"over {reason} tokens"] += fits.count(False)
    return [pair for pair, fit in zip(pairs, fits, strict=True) if fit]


def encode(pairs: Sequence[Pair], task: Task) -> Examples:
    """Return the token ids of `pairs`, each side with its end token, padded to the longest.

    Text that only the expert reads is no part of an observation and may have any length.

    Raises:
        ValueError: there is no pair, or a side is longer than the task's limit.
    """
    tokenizer = task.tokenizer
    sources = tokenizer.encode([pair.source for pair in pairs])
    references = tokenizer.encode_targets([pair.reference for pair in pairs])
    source = _padded("source", sources, task.max_source_length, tokenizer.special)
    reference = _padded("reference", references, task.max_target_length, tokenizer.special)
    if all(pair.expert_source is None for pair in pairs):
        return Examples(source, reference)
    views = encode_sources([pair.expert_view for pair in pairs], tokenizer)
    return Examples(source, reference, views)


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
    references = tokenizer.encode_targets([pair.reference for pair in task.test])
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


def _padded(side: str, rows: list[list[int]], limit: int, special: SpecialTokens) -> Tensor:
    if not rows:
        raise ValueError(f"{side} must hold at least one text, got none")
    longest = max(len(row) for row in rows) + 1
    if longest > limit:
        raise ValueError(f"{side} must have at most {limit} tokens, got {longest}")
    ended = [torch.tensor([*row, special.end]) for row in rows]
    return pad_sequence(ended, batch_first=True, padding_value=special.pad)


def take_train_pairs(task: TextTask, count: int) -> TextTask:
    """Return the task with `count` of its training pairs, those whose text hashes lowest.

    The choice depends on the text alone, so it is the same on every machine, and a smaller choice
    is a part of a larger one. Of two views the expert's counts: the examples are the same however
    much of them the student may read.

    Raises:
        ValueError: `count` is not between 1 and the number of training pairs.
    """
    if not 1 <= count <= len(task.train):
        raise ValueError(
            f"train_pairs must be between 1 and {len(task.train)}, the number of training pairs "
            f"of {task.name}, got {count}"
        )
    chosen = sorted(task.train, key=_key)[:count]
    return replace(task, train=chosen)


def _key(pair: Pair) -> int:
    return text_hash(f"{pair.expert_view}\t{pair.reference}")


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
