"""The user's own text as a task: TSV, JSON Lines, CSV, Parquet, or two aligned plain files.

`lines.py` reads their lines. TSV is one literal tab between source and reference: no quoting, no
header, no escapes. A line that cannot be read, and a header in TSV or aligned files, is one
`DataError` that names it; pairs that are left out are counted in the task's `dropped`. Of files of
sources without references nothing else is read. Compressed files are not read here, and data sets
of the hub in `hub.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from textgen_env.bounds import check_at_least
from textgen_env.tasks.columns import Columns, shown, stripped
from textgen_env.tasks.headers import check_no_header
from textgen_env.tasks.languages import check_language
from textgen_env.tasks.lines import file_lines
from textgen_env.tasks.messages import encodable_conversations
from textgen_env.tasks.prompts import BARE, check_prompt, with_prompts
from textgen_env.tasks.sources import SOURCES
from textgen_env.tasks.splits import make_task
from textgen_env.tasks.tables import csv_rows, parquet_rows
from textgen_env.tasks.task import (
    KEEP_ANY_RATIO,
    SPLITS,
    DataError,
    Limits,
    Pair,
    TaskConfig,
    TextTask,
    hashed_split,
    keep_pairs,
)
from textgen_env.tokenizers.subword import TextTokenizer

PairFiles = Path | tuple[Path, Path]  # a file of pairs, or a source and a reference file
NAMED_FIELDS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class TextFilesConfig(TaskConfig):
    """Files that hold the pairs, and the limits on them. Strings for paths become paths.

    Attributes:
        train: a file of pairs that ends in .tsv, .jsonl, .csv or .parquet, or the source file and
            the reference file, whose lines correspond. Without `validation` and `test` it is split
            by a hash of the source text: 5 % validation, 5 % test, and equal sources in the same
            split. None to learn from `sources` alone, which takes the other two splits.
        validation: the same for the validation split.
        test: the same for the test split.
        sources: files of training sources without references: the source field of files with named
            fields, what stands before the tab in TSV, and each line of any other file.
        name: short name of the task, for tables and folders.
        source_field: name of the source in files with named fields, all but TSV and aligned ones; a
            dot leads into a field, as in "translation.de".
        reference_field: name of the reference there.
        expert_source_field: name of the expert's source there; None for the field expert_source
            where there is one, and the source elsewhere.
        messages_field: name of a list of messages there, each with a role and a content, in place
            of source and reference: the last one, the assistant's, is the reference, and the others
            are put as the model's chat template has them; None for none.
        prompt: template of the source, with {source}; a view of the expert's own stays bare.
        limits: which pairs are kept; those that are not are counted.
        vocab_size: pieces of the joint vocabulary, if a tokenizer is trained.
        target_language: code of the references' language, such as "zh" or "ja", which decides how
            texts are cut into words for their scores; None for one with spaces between words.
    """

    is_complete: ClassVar[bool] = False
    train: PairFiles | None
    validation: PairFiles | None = None
    test: PairFiles | None = None
    sources: tuple[Path, ...] = ()
    name: str = "text_files"
    source_field: str = "source"
    reference_field: str = "reference"
    expert_source_field: str | None = None
    messages_field: str | None = None
    prompt: str = BARE
    limits: Limits = KEEP_ANY_RATIO
    vocab_size: int = 4000
    target_language: str | None = None

    def __post_init__(self) -> None:
        check_prompt("prompt", self.prompt)
        check_language("target_language", self.target_language)
        check_at_least(self, vocab_size=1)
        if (self.validation is None) != (self.test is None):
            raise ValueError(
                "validation and test must be given both or neither, "
                f"got validation {self.validation} and test {self.test}"
            )
        if self.train is None and not (self.sources and self.validation):
            raise ValueError(
                "train must be given unless sources, validation and test are, got None: a student "
                "is trained on one of the two, and scored on pairs"
            )
        for split, files in zip(SPLITS, (self.train, self.validation, self.test), strict=True):
            object.__setattr__(self, split, None if files is None else _paths(files))
        object.__setattr__(self, "sources", tuple(map(Path, self.sources)))
        if self.messages_field is not None:
            self._check_messages()

    def _check_messages(self) -> None:
        """Raise `ValueError` unless messages can stand in all files, and no prompt is around."""
        if self.prompt != BARE:
            raise ValueError(
                f"prompt must be left out beside messages_field, got {self.prompt!r}: messages are "
                "put in the model's chat template"
            )
        files = [self.train, self.validation, self.test, *self.sources]
        for path in files:
            if isinstance(path, tuple) or (path and path.suffix.lower() not in NAMED_FIELDS):
                raise ValueError(
                    "files must end in .jsonl, .csv or .parquet beside messages_field, got "
                    f"{path if isinstance(path, Path) else ' and '.join(map(str, path))}"
                )

    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task, as `text_files` does."""
        return text_files(self, tokenizer)


def _paths(files: PairFiles) -> PairFiles:
    """Return `files` as paths, so that a configuration read from JSON equals the one written."""
    if not isinstance(files, tuple):
        return Path(files)
    if len(files) != 2:
        raise ValueError(f"files must be one of pairs or two aligned ones, got {len(files)}")
    return Path(files[0]), Path(files[1])


def text_files(config: TextFilesConfig, tokenizer: TextTokenizer | None = None) -> TextTask:
    """Return the task of the user's files; train a tokenizer on its pairs if none is given.

    Raises:
        ChatError: there are messages, and the tokenizer has no template that they fit in.
        DataError: a file is missing, of no known format or broken, or a split is empty.
    """
    dropped: Counter[str] = Counter()
    splits = _read_splits(config)
    if config.messages_field is not None:
        splits, tokenizer = encodable_conversations(splits, tokenizer, dropped)
    task = make_task(
        config.name,
        {
            split: with_prompts(keep_pairs(pairs, config.limits, dropped), config.prompt)
            for split, pairs in splits.items()
        },
        tokenizer,
        vocab_size=config.vocab_size,
        max_tokens=config.limits.max_tokens,
        dropped=dropped,
    )
    return replace(task, target_language=config.target_language)


def _read_splits(config: TextFilesConfig) -> dict[str, list[Pair]]:
    train = [] if config.train is None else _read_files("train", config.train, config)
    sources = [pair for path in config.sources for pair in _read_sources(path, _columns_of(config))]
    if config.validation is not None and config.test is not None:
        validation = _read_files("validation", config.validation, config)
        splits = {
            "train": train,
            "validation": validation,
            "test": _read_files("test", config.test, config),
        }
    else:
        splits = _split_by_hash(train)
    return {**splits, SOURCES: sources}


def _split_by_hash(train: list[Pair]) -> dict[str, list[Pair]]:
    """Return the pairs of one file in three splits.

    Raises:
        DataError: a split gets none.
    """
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in train:
        splits[hashed_split(pair.source)].append(pair)
    for split, pairs in splits.items():
        if not pairs:
            raise DataError(
                f"train must hold enough pairs to be split by a hash, got {len(train)}, none of "
                f"which fell to the {split} split: give files for validation and test"
            )
    return splits


def _read_files(split: str, files: PairFiles, config: TextFilesConfig) -> list[Pair]:
    """Return the pairs of a split without white space at their ends; empty ones included."""
    if isinstance(files, tuple):
        pairs = _read_aligned(split, files)
    else:
        pairs = read_pairs(split, files, _columns_of(config))
    if not pairs:
        names = " and ".join(map(str, files)) if isinstance(files, tuple) else files
        raise DataError(f"{split} must hold at least one pair, got none in {names}")
    return [stripped(pair) for pair in pairs]


def _columns_of(config: TextFilesConfig) -> Columns:
    return Columns(
        config.source_field,
        config.reference_field,
        config.expert_source_field,
        config.messages_field,
    )


def read_pairs(split: str, path: Path, columns: Columns) -> list[Pair]:
    """Return the pairs in a file, as they stand there; empty ones included.

    Args:
        split: name of what the file is given for, for messages.
        path: ends in .tsv, .jsonl, .csv or .parquet.
        columns: names of the fields, where the file has names.

    Raises:
        DataError: the file is missing, of no known format or broken.
    """
    kind = path.suffix.lower()
    if kind == ".tsv":
        return _without_header(
            [_from_tsv(path, number, line) for number, line in file_lines(path)], path
        )
    if kind not in NAMED_FIELDS:
        raise DataError(
            f"{split} must be a file that ends in .tsv, .jsonl, .csv or .parquet, or a source "
            f"and a reference file, got {path}"
        )
    return [
        Pair("", "") if record is None else columns.pair(record, place)
        for place, record in _records(path)
    ]


def _read_sources(path: Path, columns: Columns) -> list[Pair]:
    """Return the sources in a file, empty ones included.

    Raises:
        DataError: it cannot be read, or holds none.
    """
    kind = path.suffix.lower()
    if kind in NAMED_FIELDS:
        pairs = [
            Pair("", None) if record is None else columns.without_reference(record, place)
            for place, record in _records(path)
        ]
    else:
        lines = [line for _, line in file_lines(path)]
        if kind == ".tsv":
            parts = [line.partition("\t") for line in lines]
            _without_header([Pair(source, other) for source, _, other in parts[:1]], path)
            lines = [source for source, *_ in parts]
        pairs = [Pair(text, None) for text in lines]
    if not pairs:
        raise DataError(f"sources must hold at least one source, got none in {path}")
    return [stripped(pair) for pair in pairs]


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """Yield the place and the record of each row of a file with named fields; None if empty."""
    match path.suffix.lower():
        case ".csv":
            yield from csv_rows(path)
        case ".parquet":
            yield from parquet_rows(path)
        case _:
            for number, line in file_lines(path):
                place = f"{path}, line {number}"
                yield place, _from_json(place, line) if line.strip() else None


def _read_aligned(split: str, files: tuple[Path, Path]) -> list[Pair]:
    source_path, reference_path = files
    sources = [line for _, line in file_lines(source_path)]
    references = [line for _, line in file_lines(reference_path)]
    if len(sources) != len(references):
        raise DataError(
            f"{split} must be two files of as many lines, got {len(sources)} in {source_path} and "
            f"{len(references)} in {reference_path}"
        )
    pairs = [Pair(*sides) for sides in zip(sources, references, strict=True)]
    return _without_header(pairs, source_path, reference_path)


def _without_header(pairs: list[Pair], *paths: Path) -> list[Pair]:
    """Return the pairs of a file, or of two aligned ones, of which the first is no header."""
    if pairs:
        check_no_header(pairs[0], f"{' and '.join(map(str, paths))}, line 1")
    return pairs


def _from_tsv(path: Path, number: int, line: str) -> Pair:
    fields = line.split("\t")
    if not line.strip():
        return Pair("", "")
    if len(fields) != 2:
        raise DataError(
            f"{path}, line {number}: a line must hold 2 fields, source<TAB>reference, "
            f"got {len(fields)}"
        )
    return Pair(*fields)


def _from_json(place: str, line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: a line must be a JSON object, got invalid JSON: {error}"
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: a line must be a JSON object, got {shown(record)}")
    return record
