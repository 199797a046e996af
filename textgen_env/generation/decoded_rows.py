"""Count of the sources that have been decoded, for whoever shows the progress of long decoding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


def _ignore(rows: int) -> None:
    """Ignore the count, as nobody has asked for it."""


_listener: ContextVar[Callable[[int], None]] = ContextVar("listener", default=_ignore)


@contextmanager
def decoded_rows_told_to(listener: Callable[[int], None]) -> Iterator[None]:
    """Call `listener` with the number of sources decoded since the last call."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def note_decoded(rows: int) -> None:
    """Note that the texts of `rows` further sources are there."""
    _listener.get()(rows)
