r"""The one reader of text that comes in lines: data files of each kind, and standard input.

UTF-8, with or without a byte order mark; a line ends at "\n" or "\r\n" and nowhere else, and takes
at most `LONGEST_LINE` bytes. A line that breaks a rule is one `DataError` that names it.
"""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

from textgen_env.tasks.task import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_LINE = 2**24  # bytes: a file without line ends, or a device, must not fill the memory

NumberedLine = tuple[int, str]
"""The number of a line, from 1, and its text."""

_LINE_ENDS = re.compile(r"[\r\n]+")


def read_lines(stream: BinaryIO, name: str) -> Iterator[NumberedLine]:
    """Yield each line without its end.

    Args:
        stream: bytes, from their beginning.
        name: of the file, for errors.

    Raises:
        DataError: the stream cannot be read, or a line is no UTF-8 or too long.
    """
    for number, line in lines_with_ends(stream, name):
        yield number, line.removesuffix("\n").removesuffix("\r")


def file_lines(path: Path, *, with_ends: bool = False) -> Iterator[NumberedLine]:
    """Yield each line of a file, as `read_lines` does or with its end."""
    try:
        with path.open("rb") as file:
            yield from (lines_with_ends if with_ends else read_lines)(file, str(path))
    except OSError as error:
        raise unreadable(str(path), error) from error


def lines_with_ends(stream: BinaryIO, name: str) -> Iterator[NumberedLine]:
    """Yield each line with its end, which formats need whose cells hold line ends themselves."""
    for number in count(1):
        try:
            line = stream.readline(LONGEST_LINE + 1)
        except OSError as error:
            raise unreadable(name, error) from error
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line:
            return
        yield number, _decoded(line, f"{name}, line {number}")


def in_one_line(text: str) -> str:
    """Return `text` with a space for the line ends within it."""
    return _LINE_ENDS.sub(" ", text)


def unreadable(name: str, error: OSError) -> DataError:
    """Return the error of a file that cannot be read."""
    return DataError(f"{name} must be a readable file, got: {error.strerror or error}")


def _decoded(line: bytes, place: str) -> str:
    if len(line) > LONGEST_LINE:
        raise DataError(
            f"{place}: a line must have at most {LONGEST_LINE:,} bytes, got more: end lines with "
            '"\\n"'
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: a line must be UTF-8, got the byte 0x{line[error.start]:02x} "
            f"at position {error.start + 1}: convert the text to UTF-8"
        ) from error
