"""Names of columns in the first line of files that have no header.

Such a line would be learned from, and scored, as a pair.
"""

from textgen_env.tasks.task import DataError, Pair

SOURCE_NAMES = frozenset(
    {"source", "src", "input", "prompt", "question", "query", "document", "article", "instruction"}
)
REFERENCE_NAMES = frozenset(
    {"reference", "ref", "target", "tgt", "trg", "output", "completion", "response", "answer"}
    | {"summary", "translation"}
)


def check_no_header(first: Pair, place: str) -> None:
    """Check that the first pair of a file is none of names, in this order or the other.

    Args:
        first: as it stands in the file; without a reference it may be anything.
        place: file and line, for the message.

    Raises:
        DataError: it is a name of sources beside one of references.
    """
    source, reference = _as_compared(first.source), _as_compared(first.reference or "")
    is_reversed = source in REFERENCE_NAMES and reference in SOURCE_NAMES
    if is_reversed or (source in SOURCE_NAMES and reference in REFERENCE_NAMES):
        order = ", and put the source before the reference" if is_reversed else ""
        raise DataError(
            f"{place}: a line must be a pair, got the header {first.source!r} and "
            f"{first.reference!r}: remove it, as these files have none{order}"
        )


def _as_compared(text: str) -> str:
    """Return a text as names are compared."""
    return text.strip().strip("\"'#").strip().casefold()
