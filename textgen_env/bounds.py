"""Checks of the numbers in records, in one wording.

Each check reads fields of a dataclass. A number must be of the kind that its field declares,
finite, and below 2^63 if it is whole; None passes where the field allows it. Fields in which
infinity has a meaning are checked where they stand.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, cast, get_args

LARGEST_WHOLE = 2**63 - 1  # what tensors and generators of random numbers hold


def check_at_least(record: object, remedy: str = "", /, **least: float) -> None:
    """Raise unless each named field of `record` has at least its least value.

    Args:
        record: dataclass that has the named fields.
        remedy: sentence that ends the error, if there is something to say.
        **least: name of a field -> its least value.

    Raises:
        TypeError: a value is no number, or not whole where its field is.
        ValueError: a value is smaller, or is not finite.
    """
    for name, bound in least.items():
        _check_number(record, name, f"at least {bound}", lambda n, b=bound: n >= b, remedy)


def check_above(record: object, remedy: str = "", /, **bounds: float) -> None:
    """Raise unless each named field of `record` is above its bound.

    Raises:
        TypeError: a value is no number, or not whole where its field is.
        ValueError: a value is not above the bound, or is not finite.
    """
    for name, bound in bounds.items():
        _check_number(record, name, f"above {bound}", lambda n, b=bound: n > b, remedy)


def check_shares(record: object, *names: str) -> None:
    """Raise unless each named field of `record` is in [0, 1].

    Raises:
        TypeError: a value is no number.
        ValueError: a value is outside.
    """
    for name in names:
        _check_number(record, name, "in [0, 1]", lambda n: 0 <= n <= 1)


def check_positive_shares(record: object, remedy: str, /, *names: str) -> None:
    """Raise unless each named field of `record` is in (0, 1]; `remedy` ends the error.

    Raises:
        TypeError: a value is no number.
        ValueError: a value is outside.
    """
    for name in names:
        _check_number(record, name, "in (0, 1]", lambda n: 0 < n <= 1, remedy)


def check_finite(record: object, *names: str) -> None:
    """Raise unless each named field of `record` holds a finite number of its kind.

    Raises:
        TypeError: a value is no number, or not whole where its field is.
        ValueError: a value is not finite.
    """
    for name in names:
        _check_number(record, name, "a number", lambda _: True)


def _check_number(
    record: object, name: str, rule: str, holds: Callable[[float], bool], remedy: str = ""
) -> None:
    """Raise unless the field is finite, of its declared kind, and `holds` is true of it."""
    declared = next(field.type for field in fields(cast("Any", record)) if field.name == name)
    kinds = get_args(declared) or (declared,)
    value = getattr(record, name)
    if value is None and NoneType in kinds:
        return
    rule += " or None" if NoneType in kinds else ""
    ending = f"; {remedy}" if remedy else ""
    whole = float not in kinds
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        kind = "a whole number" if whole else "a number"
        raise TypeError(f"{name} must be {kind}, {rule}, got {value!r}{ending}")
    if not holds(cast("float", value)):
        raise ValueError(f"{name} must be {rule}, got {value}{ending}")
    if isinstance(value, Integral) and abs(int(value)) > LARGEST_WHOLE:
        raise ValueError(f"{name} must be below 2^63, got one of {int(value).bit_length()} bits")
    if not math.isfinite(cast("float", value)):
        raise ValueError(f"{name} must be finite and {rule}, got {value}{ending}")
