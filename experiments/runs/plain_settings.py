"""Settings in words by the names that options have, and those in which runs differ."""

from collections.abc import Mapping
from typing import Any


def differing(values: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the names of the settings with more than one value, or that only some runs have."""
    names = dict.fromkeys(name for settings in values.values() for name in settings)
    return [name for name in names if len({each.get(name) for each in values.values()}) > 1]


def plain_settings(value: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """Return the leaves of a configuration in words, by path, such as `learner.batch-size`.

    A record stands for its kind under its own path; a list of plain values is one setting.
    """
    found = {}
    for key, item in value.items():
        path = f"{name}.{key}" if name else key
        path = path.replace("_", "-")
        if key == "type":
            found |= {name: str(item)} if name else {}
        elif isinstance(item, dict):
            found |= plain_settings(item, path)
        else:
            found[path] = _in_words(item)
    return found


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, dict):
        return " ".join(str(each) for each in value.values())
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
