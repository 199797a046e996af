"""Variants of a test that take the same way through the code."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(names: Iterable[str], *fast: str) -> list[Any]:
    """Return the names as parameters of a test, all but `fast` marked as slow."""
    others = (name for name in names if name not in fast)
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]
