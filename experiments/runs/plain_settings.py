"""Settings in words by the names that options have, and those in which runs differ."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from textgen_experiments.runs.experiment import agent_name
from textgen_experiments.runs.folder import Run
from textgen_experiments.runs.records import to_json

PATH = "Path"  # kind of the record that a path is in JSON


def settings_of_run(run: Run) -> dict[str, str]:
    """Return the settings of a run in words, by the names that options have."""
    named = {"agent": agent_name(run.experiment.agent), "precision": run.precision}
    return {**named, **plain_settings(to_json(run.experiment)), **named}


def differing(values: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the names of the settings with more than one value, or that only some runs have."""
    names = dict.fromkeys(name for settings in values.values() for name in settings)
    return [name for name in names if len({each.get(name) for each in values.values()}) > 1]


def differing_alike(values: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the names of the settings that differ between runs with equal parts above them.

    Runs of unlike agents differ in `agent`, and an option of these agents, such as
    `agent.beta.base`, differs between runs of the same agent with the same kind of beta alone.
    """
    return [name for name in differing(values) if _differs_alike(name, values)]


def _differs_alike(name: str, values: Mapping[str, Mapping[str, str]]) -> bool:
    """Return True if two runs with the same parts above a setting have two values of it."""
    above = list(accumulate(name.split(".")[:-1], "{}.{}".format))
    found: dict[tuple[str | None, ...], set[str | None]] = {}
    for settings in values.values():
        parts = tuple(settings.get(part) for part in above)
        found.setdefault(parts, set()).add(settings.get(name))
    return any(len(own) > 1 for own in found.values())


def plain_settings(value: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """Return the leaves of a configuration in words, by path, such as `learner.batch-size`.

    A record stands for its kind under its own path; a list of plain values is one setting, and so
    is a path of a file.
    """
    found = {}
    for key, item in value.items():
        path = f"{name}.{key}" if name else key
        path = path.replace("_", "-")
        if key == "type":
            found |= {name: str(item)} if name else {}
        elif isinstance(item, dict) and item["type"] != PATH:
            found |= plain_settings(item, path)
        else:
            found[path] = _in_words(item)
    return found


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, dict):
        named = [str(item) for key, item in value.items() if (key, item) != ("type", PATH)]
        return " ".join(named)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
