"""Paths in the fields of a configuration: the files that it names."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path


def field_paths(value: object) -> Iterator[Path]:
    """Yield the paths in a configuration, nested ones too, in the order of the fields.

    Fields that are left out of comparisons are left out here, too: their values may change.
    """
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from field_paths(item)
    elif is_dataclass(value):
        for each in fields(value):
            if each.compare:
                yield from field_paths(getattr(value, each.name))
