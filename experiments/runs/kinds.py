"""Kinds of the values in a record, as the type hints of its fields declare them.

JSON has fewer kinds than Python, and a file may hold any of them in any place.
"""

import reprlib
from dataclasses import fields
from functools import lru_cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

PLAIN = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    None: (NoneType,),
    NoneType: (NoneType,),
}


def check_kinds(record: object) -> None:
    """Raise unless each field of a dataclass holds a value of the kind that it declares.

    Raises:
        TypeError: a value is of another kind.
    """
    hints = _hints(type(record))
    for each in fields(cast("Any", record)):
        value = getattr(record, each.name)
        if not is_of_kind(value, hints[each.name]):
            shown = getattr(hints[each.name], "__name__", hints[each.name])
            raise TypeError(f"{each.name} must be of the kind {shown}, got {reprlib.repr(value)}")


def is_of_kind(value: object, hint: Any) -> bool:  # noqa: ANN401 - hints have no common type
    """Return True if `value` is of the kind that a type hint declares.

    A whole number is a number, a truth value is neither. Hints that name no class, as type
    variables, and protocols accept everything.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return is_of_kind(value, parts[0])
    if origin in (Union, UnionType):
        return any(is_of_kind(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and _are_of_kinds(value, parts)
    if hint in PLAIN:
        return type(value) in PLAIN[hint]
    kind = origin or hint
    if not isinstance(kind, type) or Protocol in kind.__mro__:
        return True
    return isinstance(value, kind)


def _are_of_kinds(values: tuple[object, ...], parts: tuple[Any, ...]) -> bool:
    """Return True if each item of a tuple is of the kind that the tuple's hint declares."""
    if parts[1:] == (Ellipsis,):
        parts = parts[:1] * len(values)
    return len(values) == len(parts) and all(map(is_of_kind, values, parts))


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
