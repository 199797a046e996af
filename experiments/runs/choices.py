"""Options whose choices are the names in a registry when the command line is read."""

from ast import literal_eval
from collections.abc import Iterable
from typing import Any, Literal

import tyro


def one_of(names: Iterable[str]) -> Any:  # noqa: ANN401 - tyro's own type
    """Return the setting of an option that is one of `names`."""
    return _looked_up(lambda: Literal[tuple(names)])


def several_of(names: Iterable[str]) -> Any:  # noqa: ANN401 - tyro's own type
    """Return the setting of an option that is any number of `names`."""
    return _looked_up(lambda: tuple[Literal[tuple(names)], ...])


def _looked_up(hint: Any) -> Any:  # noqa: ANN401 - tyro's own types
    return tyro.conf.arg(constructor_factory=hint, help_behavior_hint=_with_plain_names)


def _with_plain_names(default: str) -> str:
    """Return the note on the default, which tyro gives here as a list in Python."""
    return f"(default: {' '.join(literal_eval(default))})"
