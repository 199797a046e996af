"""From a record with named fields to a pair of texts, whatever file it was read from."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from textgen_env.tasks.lines import LONGEST_LINE
from textgen_env.tasks.messages import checked_messages, pair_of_messages, source_of_messages
from textgen_env.tasks.task import DataError, Pair
from textgen_env.tokenizers.chat import Message

EXPERT_SOURCE = "expert_source"  # a field of this name is the expert's, if no other was named

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can spell


@dataclass(frozen=True)
class Columns:
    """Names of the fields that hold the texts. A dot leads into a field: "translation.de".

    Attributes:
        source: field of the student's source.
        reference: field of the reference.
        expert_source: field of the expert's source, null there for the source; None for the field
            expert_source of records that have one.
        messages: field of a list of messages, in place of source and reference; None for none.
    """

    source: str
    reference: str
    expert_source: str | None = None
    messages: str | None = None

    def pair(self, record: Mapping[str, object], place: str) -> Pair:
        """Return the texts of `record`, which stands at `place`.

        Raises:
            DataError: a field is missing, or holds no text.
        """
        if self.messages is not None:
            messages = self._messages(record, self.messages, place)
            return pair_of_messages(messages, place, self._view(record, place))
        source, reference = _text(record, self.source, place), _text(record, self.reference, place)
        return Pair(source, reference, self._view(record, place))

    def without_reference(self, record: Mapping[str, object], place: str) -> Pair:
        """Return the source of `record`, and its view of the expert's; no other field is read.

        Raises:
            DataError: a field is missing, or holds no text.
        """
        if self.messages is not None:
            messages = self._messages(record, self.messages, place)
            return source_of_messages(messages, self._view(record, place))
        return Pair(_text(record, self.source, place), None, self._view(record, place))

    def _messages(self, record: Mapping[str, object], field: str, place: str) -> list[Message]:
        messages = checked_messages(_value(record, field, place), place)
        for message in messages:
            _check_text(message["content"], field, place)
        return messages

    def _view(self, record: Mapping[str, object], place: str) -> str | None:
        if self.expert_source is None and EXPERT_SOURCE not in record:
            return None
        view = self.expert_source or EXPERT_SOURCE
        return None if _value(record, view, place) is None else _text(record, view, place)


def stripped(pair: Pair) -> Pair:
    """Return the pair without white space at the ends of its texts."""
    return each_text(pair, str.strip)


def each_text(pair: Pair, change: Callable[[str], str]) -> Pair:
    """Return the pair with each of its texts changed."""
    reference, view = pair.reference, pair.expert_source
    return Pair(
        change(pair.source),
        None if reference is None else change(reference),
        None if view is None else change(view),
    )


def shown(value: object) -> str:
    """Return `value` for a message: as JSON, or else as Python shows it, and cut if it is long."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _value(record: Mapping[str, object], field: str, place: str) -> object:
    """Return the value of a field, by its whole name or through the part before the first dot."""
    if field in record:
        return record[field]
    outer, dot, inner = field.partition(".")
    within = record.get(outer)
    if dot and isinstance(within, Mapping):
        return _value(within, inner, f"{place}, {outer}")
    raise DataError(
        f'{place} must have the field "{field}", got {shown(list(record))}: set the names of the '
        "fields"
    )


def _text(record: Mapping[str, object], field: str, place: str) -> str:
    value = _value(record, field, place)
    if not isinstance(value, str):
        raise DataError(f'{place}: the field "{field}" must be a string, got {shown(value)}')
    _check_text(value, field, place)
    return value


def _check_text(value: str, field: str, place: str) -> None:
    """Raise `DataError` for half a character, or a text longer than any line."""
    if _SURROGATE.search(value):
        raise DataError(
            f'{place}: the field "{field}" must be Unicode text, got half a surrogate pair'
        )
    if len(value) > LONGEST_LINE:
        raise DataError(
            f'{place}: the field "{field}" must have at most {LONGEST_LINE:,} characters, got '
            f"{len(value):,}"
        )
