"""A data set of the hub as a task, by the library `datasets` (the extra `hf`).

Its columns are mapped to source, reference and, where there is one, the expert's source. Files of
your own are read by `text_files.py`; a folder of files laid out as on the hub is read here, too.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from textgen_env.bounds import check_at_least
from textgen_env.tasks.columns import Columns, each_text, stripped
from textgen_env.tasks.languages import check_language, split_words
from textgen_env.tasks.messages import encodable_conversations
from textgen_env.tasks.prompts import BARE, check_prompt, prompted, with_prompts
from textgen_env.tasks.sources import SOURCES
from textgen_env.tasks.splits import make_task, train_tokenizer
from textgen_env.tasks.tables import HubSplit, hub_commit, hub_rows
from textgen_env.tasks.task import (
    KEEP_ANY_RATIO,
    DataError,
    Limits,
    Pair,
    TaskConfig,
    TextTask,
    keep_pairs,
)
from textgen_env.tokenizers.subword import TextTokenizer

PairOf = Callable[[Mapping[str, Any], str], Pair]
"""(record, its place) -> the pair that it holds."""


@dataclass(frozen=True)
class HubConfig(TaskConfig):
    """Data set of the hub, its columns, and the limits on its pairs.

    Attributes:
        path: the data set's name on the hub, such as "wmt/wmt16", or a folder laid out as there.
        configuration: one of its configurations, such as "de-en"; None for the only one.
        revision: branch, tag or commit; None for the newest.
        train: name of the training split; None to learn from `sources` alone.
        validation: name of the validation split.
        test: name of the test split.
        sources: names of splits of which the source alone is read, to be learned from without
            references, such as "unsupervised".
        source: column of the source; a dot leads into a column, as in "translation.de".
        reference: column of the reference.
        expert_source: column of the expert's source; None for the column expert_source where
            there is one, and the source elsewhere.
        messages: column of a list of messages, each with a role and a content, in place of source
            and reference: the last one, the assistant's, is the reference, and the others are put
            as the model's chat template has them; None for none.
        prompt: template of the source, with {source}; a view of the expert's own stays bare.
        lower_case: whether all texts are lower-cased.
        cut_source: tokens to which longer sources are cut, at a word, prompt and end token counted;
            None to leave out pairs whose source is longer than the limits'.
        streaming: whether rows are fetched as they are read, and nothing is kept on disk.
        max_train_pairs: training pairs that are read, the first ones; None for all.
        max_train_sources: the same for each split of `sources`.
        name: short name of the task, for tables and folders.
        limits: which pairs are kept; those that are not are counted.
        vocab_size: pieces of the joint vocabulary, if a tokenizer is trained.
        target_language: code of the references' language, such as "zh" or "ja", which decides how
            texts are cut into words for their scores; None for one with spaces between words.
    """

    is_complete: ClassVar[bool] = False
    path: str
    configuration: str | None = None
    revision: str | None = None
    train: str | None = "train"
    validation: str = "validation"
    test: str = "test"
    sources: tuple[str, ...] = ()
    source: str = "source"
    reference: str = "reference"
    expert_source: str | None = None
    messages: str | None = None
    prompt: str = BARE
    lower_case: bool = False
    cut_source: int | None = None
    streaming: bool = False
    max_train_pairs: int | None = None
    max_train_sources: int | None = None
    name: str = "hub"
    limits: Limits = KEEP_ANY_RATIO
    vocab_size: int = 8000
    target_language: str | None = None

    def __post_init__(self) -> None:
        check_prompt("prompt", self.prompt)
        check_language("target_language", self.target_language)
        check_at_least(self, cut_source=2, max_train_pairs=1, max_train_sources=1, vocab_size=1)
        if self.train is None and not self.sources:
            raise ValueError(
                "train must be given unless sources are, got None: name a split to learn from"
            )
        if self.messages is not None and (
            self.prompt != BARE or self.lower_case or self.cut_source is not None
        ):
            raise ValueError(
                "prompt, lower_case and cut_source must be left out beside messages, got "
                f"{self.prompt!r}, {self.lower_case} and {self.cut_source}: messages are put as "
                "they are in the model's chat template"
            )

    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task, as `hub` does."""
        return hub(self, tokenizer)

    def outside_files(self) -> Mapping[str, Path]:
        """Return the folder that `path` names, none if it names a data set of the hub."""
        folder = Path(self.path)
        return {str(folder): folder} if folder.exists() else {}

    def outside_digests(self) -> Mapping[str, str]:
        """Return the commit of a data set of the hub; none where it is neither there nor here."""
        if self.outside_files():
            return {}
        commit = hub_commit(self.split(self.train or self.test))
        return {} if commit is None else {f"the data set {self.path}": commit}

    def split(self, name: str) -> HubSplit:
        """Return the place of a split, by its name in the data set."""
        return HubSplit(self.path, name, self.configuration, self.revision, self.streaming)


def hub(config: HubConfig, tokenizer: TextTokenizer | None = None) -> TextTask:
    """Return the task of a data set; train a tokenizer on the training pairs if none is given.

    Raises:
        ChatError: there are messages, and the tokenizer has no template that they fit in.
        DataError: the data set or a split of it is not found, a column is missing or holds no
            text, or a split is empty.
    """
    dropped: Counter[str] = Counter()
    columns = Columns(config.source, config.reference, config.expert_source, config.messages)
    most, most_sources = config.max_train_pairs, config.max_train_sources
    train = [] if config.train is None else [config.train]
    read = partial(_pairs_of_splits, config, dropped)
    splits = {
        "train": read(train, columns.pair, most),
        "validation": read([config.validation], columns.pair),
        "test": read([config.test], columns.pair),
        SOURCES: read(config.sources, columns.without_reference, most_sources),
    }
    longest = config.limits.max_tokens
    if config.messages is not None:
        splits, tokenizer = encodable_conversations(splits, tokenizer, dropped)
    if config.cut_source is not None:
        texts = [*splits["train"], *splits[SOURCES]]
        tokenizer = tokenizer or train_tokenizer(texts, config.vocab_size)
        around = len(tokenizer.encode([prompted("", config.prompt)])[0])
        limit, longest = config.cut_source - around - 1, config.cut_source
        splits = {name: _with_cut_sources(p, tokenizer, limit) for name, p in splits.items()}
    task = make_task(
        config.name,
        {name: with_prompts(pairs, config.prompt) for name, pairs in splits.items()},
        tokenizer,
        vocab_size=config.vocab_size,
        max_tokens=longest,
        max_target_tokens=config.limits.max_tokens,
        dropped=dropped,
    )
    return replace(task, target_language=config.target_language)


def cut(texts: Sequence[str], tokenizer: TextTokenizer, limit: int) -> list[str]:
    """Return the texts, each cut at a word so that it has at most `limit` tokens.

    A text keeps its first word even if that alone has more.

    Args:
        texts: words separated by white space, of which one space is left in texts that are cut; in
            scripts without spaces each character is a word.
        tokenizer: counts.
        limit: without an end token, at least 1.
    """
    cut_texts = list(texts)
    rows = range(len(texts))
    while rows:
        lengths = map(len, tokenizer.encode([cut_texts[row] for row in rows]))
        too_long = []
        for row, length in zip(rows, lengths, strict=True):
            words = split_words(cut_texts[row])
            if length > limit and len(words) > 1:
                kept = max(1, min(len(words) - 1, len(words) * limit // length))
                cut_texts[row] = "".join(words[:kept]).rstrip()
                too_long.append(row)
        rows = too_long
    return cut_texts


def _pairs_of_splits(
    config: HubConfig,
    dropped: Counter[str],
    names: Sequence[str],
    pair_of: PairOf,
    count: int | None = None,
) -> list[Pair]:
    """Return the pairs within the limits among the first `count` of each split of these names."""
    kept = []
    for name in names:
        pairs = list(islice(_iterate_pairs(config, name, pair_of), count))
        if not pairs:
            raise DataError(f"{config.path} must have at least one row in split {name}, got none")
        kept += keep_pairs(pairs, config.limits, dropped)
    return kept


def _iterate_pairs(config: HubConfig, split: str, pair_of: PairOf) -> Iterator[Pair]:
    for place, record in hub_rows(config.split(split)):
        pair = stripped(pair_of(record, place))
        yield each_text(pair, str.lower) if config.lower_case else pair


def _with_cut_sources(pairs: Sequence[Pair], tokenizer: TextTokenizer, limit: int) -> list[Pair]:
    sources = cut([pair.source for pair in pairs], tokenizer, limit)
    return [pair._replace(source=source) for pair, source in zip(pairs, sources, strict=True)]
