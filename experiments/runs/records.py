"""Configurations as JSON and back: a record carries the name of its class as "type".

The classes that may occur are found from the registries: those of their entries, and those that the
type hints of their fields mention.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isabstract
from pathlib import Path
from typing import Any, get_args, get_type_hints

from textgen_agents import AGENTS
from textgen_env.models import STUDENTS
from textgen_env.models.huggingface.model import HuggingFaceConfig
from textgen_env.registry import class_of
from textgen_env.tasks import TASKS
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.kinds import check_kinds
from textgen_experiments.runs.old_names import RENAMED
from textgen_experiments.runs.shipped import path_of_name, portable_name

ROOTS = (Experiment, HuggingFaceConfig)  # a pretrained student is loaded, so no registry has it


class UnknownRecordError(ValueError):
    """A class that neither a registry nor the type hints of its entries know."""


def records() -> dict[str, type]:
    """Return the classes that may occur in a configuration, by name.

    Raises:
        ValueError: two of them have the same name.
    """
    loaded = [*AGENTS.loaded(), *TASKS.loaded(), *STUDENTS.loaded()]
    found: dict[str, type] = {}
    waiting = [*ROOTS, *map(class_of, loaded)]
    while waiting:
        kind = waiting.pop()
        other = found.setdefault(kind.__name__, kind)
        if other is not kind:
            raise ValueError(
                f"configurations must have different names, got {kind.__name__} in "
                f"{kind.__module__} and in {other.__module__}: rename one"
            )
        mentioned = {part for hint in get_type_hints(kind).values() for part in _parts(hint)}
        waiting += [part for part in mentioned if found.get(part.__name__) is not part]
    return found


def to_json(value: object) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """Return a configuration as JSON values.

    Raises:
        ValueError: JSON does not keep a value.
    """
    if is_dataclass(value):
        named = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **named}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return {"type": "Path", "path": portable_name(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        "settings must be numbers, strings, paths, tuples or dataclasses of these, which JSON "
        f"keeps, got {value!r}"
    )


def from_json(value: Any) -> Any:  # noqa: ANN401 - the inverse of `to_json`
    """Return the configuration that `to_json` turned into `value`.

    Raises:
        UnknownRecordError: a class is not known.
        TypeError: a value is not of the kind that its field declares.
        ValueError: a class has no field of a name, or refuses a value.
    """
    return _value_from_json(value, records())


def _value_from_json(value: Any, known: Mapping[str, type]) -> Any:  # noqa: ANN401 - JSON, as above
    if isinstance(value, list):
        return tuple(_value_from_json(item, known) for item in value)
    if not isinstance(value, dict):
        return value
    name, named = str(value["type"]), {k: item for k, item in value.items() if k != "type"}
    if name == "Path":
        return path_of_name(named["path"])
    kind = known.get(RENAMED.get(name, name))
    if kind is None:
        raise UnknownRecordError(f"type must be that of a registered part, got {name!r}")
    own, arguments = {field.name for field in fields(kind)}, {}
    for key, item in named.items():
        current = key if key in own else RENAMED.get(key, key)
        if current not in own:
            raise ValueError(f"{name} must have fields among {sorted(own)}, got {key!r}")
        arguments[current] = _value_from_json(item, known)
    record = kind(**arguments)
    check_kinds(record)
    return record


def _parts(hint: object) -> Iterator[type]:
    """Yield the dataclasses that a type hint mentions and that can be made."""
    if isinstance(hint, type) and is_dataclass(hint) and not isabstract(hint):
        yield hint
    for part in get_args(hint):
        yield from _parts(part)
