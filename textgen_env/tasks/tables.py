"""Rows of CSV and Parquet files and of the hub's data sets, as records with named fields.

CSV is read by the standard library, so that no cell is taken for a number or for nothing; it has a
header, commas, and quotes where need be, and its lines are read as those of other files. The others
are read by the library `datasets` (the extra `hf`), which is imported only then.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgen_env.tasks.columns import shown
from textgen_env.tasks.lines import LONGEST_LINE, file_lines
from textgen_env.tasks.task import DataError

Row = tuple[str, Mapping[str, Any]]
"""The place of a record, for errors, and the record."""

PATIENCE = 5.0  # seconds in which the hub has to say that it is there


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set.

    Attributes:
        path: the data set's name on the hub, or a folder of files laid out as there.
        name: the split's.
        configuration: of the data set; None for its only one.
        revision: branch, tag or commit; None for the newest.
        streaming: whether rows are fetched as they are read, and nothing is kept on disk.
    """

    path: str
    name: str
    configuration: str | None
    revision: str | None
    streaming: bool


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file, every cell a string.

    Raises:
        DataError: it cannot be read, or a row has another number of cells than the header.
    """
    csv.field_size_limit(max(LONGEST_LINE, csv.field_size_limit()))  # the library's is 128 KiB
    reader = csv.reader((line for _, line in file_lines(path, with_ends=True)), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path} must have a name for each column, got {shown(header)}")
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{place} must have {len(header)} cells, as the header has, got "
                    f"{len(cells)}: put cells with commas in quotes"
                )
            if cells:
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: a row must be CSV, got: {error}"
        ) from error


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: it cannot be read, or the extra `hf` is not installed.
    """
    files = {"train": str(path)}

    def read(library: Any) -> Any:  # noqa: ANN401 - the library's own
        return library.load_dataset(
            "parquet", data_files=files, split="train", streaming=True, trust_remote_code=False
        )

    return _rows(str(path), read, "give a Parquet file")


def hub_rows(split: HubSplit) -> Iterator[Row]:
    """Yield the rows of a split, from the hub or, where that cannot be reached, as fetched before.

    Raises:
        DataError: there is no such split, it is neither on the hub nor here, or the extra `hf` is
            not installed.
    """

    def read(library: Any) -> Any:  # noqa: ANN401 - the library's own
        with _offline_unless_reached(library, split):
            return library.load_dataset(
                split.path,
                split.configuration,
                split=split.name,
                revision=split.revision,
                streaming=split.streaming,
                trust_remote_code=False,
            )

    remedy = (
        "name a data set of the hub or a folder, one of its configurations and one of its splits; "
        "without a network, one that was fetched before"
    )
    return _rows(f"{split.path}, {split.name}", read, remedy)


def hub_commit(split: HubSplit) -> str | None:
    """Return the commit of the data set that `hub_rows` would read, as the library knows it.

    None where the data set is neither on the hub nor here, or the extra `hf` is not installed: that
    is for `hub_rows` to say.
    """
    try:
        library = _quiet_library()
        with _offline_unless_reached(library, split):
            return library.load_dataset_builder(
                split.path, split.configuration, revision=split.revision
            ).hash
    except Exception:  # the library raises almost everything
        return None


def _quiet_library() -> Any:  # noqa: ANN401 - the library's own
    """Import the library `datasets`, and let it say nothing on the terminal.

    Raises:
        ImportError: the extra `hf` is not installed.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are raised here as well
    return datasets


def _rows(
    name: str, read: Callable[[Any], Iterable[Mapping[str, Any]]], remedy: str
) -> Iterator[Row]:
    """Yield the rows that `read` gets from the library, and raise its errors as `DataError`."""
    try:
        library = _quiet_library()
    except ImportError as error:
        raise DataError(
            f"{name} needs the extra hf to be read, got none ({error}): run "
            "`pip install 'textgen-env[hf]'`"
        ) from error
    try:
        for number, record in enumerate(read(library), 1):
            yield f"{name}, row {number}", record
    except Exception as error:  # the library raises almost everything
        raise DataError(
            f"{name} must be readable, got {type(error).__name__}: {error}: {remedy}"
        ) from error


@contextmanager
def _offline_unless_reached(library: Any, split: HubSplit) -> Iterator[None]:  # noqa: ANN401
    """Ask once whether the hub is there; without it, the library reads the disk at once.

    By itself it asks again and again, for every split.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    before = library.config.HF_HUB_OFFLINE
    if not (before or Path(split.path).exists()):
        try:
            HfApi().dataset_info(split.path, revision=split.revision, timeout=PATIENCE)
        except HfHubHTTPError:
            pass  # the hub answers; the library finds the error itself
        except Exception:  # of a network, of whichever client
            library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before
