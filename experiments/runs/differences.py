"""Settings that decide what is learned: their digest, and those in which two experiments differ."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from textgen_agents import AGENTS
from textgen_env.models import STUDENTS
from textgen_env.registry import class_of
from textgen_env.tasks import TASKS
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import Leaf, flat
from textgen_experiments.runs.records import to_json

STUDENT_SETTING = "student"
UPDATES = "learner.updates"  # which may be raised
NONE = "none"
MOST_NAMED = 3  # settings in a message
Difference = tuple[str, Leaf, Leaf]
"""Name of a setting, its value before and its value now."""


def settings_digest(experiment: Experiment) -> str:
    """Return the SHA-256 of all settings but those that decide on nothing that is learned."""
    settings = to_json(_settled(experiment, Experiment()))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(old: Experiment, new: Experiment) -> Iterator[Difference]:
    """Yield the settings in which two experiments differ and that decide what is learned."""
    is_derived = old.student_from_teacher != new.student_from_teacher  # the student follows
    kinds = [
        each
        for each in _different_kinds(old, new)
        if not (is_derived and each[0] == STUDENT_SETTING)
    ]
    yield from kinds
    named = {part for part, *_ in kinds} | ({STUDENT_SETTING} if is_derived else set())
    before, after = (flat(to_json(_settled(each, new))) for each in (old, new))
    for name in dict.fromkeys([*before, *after]):
        values = before.get(name, NONE), after.get(name, NONE)
        if values[0] != values[1] and name.split(".")[0] not in named:
            yield name.removesuffix(".type").removesuffix(".path"), *values


def _different_kinds(old: Experiment, new: Experiment) -> Iterator[Difference]:
    """Yield the parts that are of different kinds, by their names in the registries."""
    for name, registry, before, after in (
        ("agent", AGENTS, old.agent, new.agent),
        ("task", TASKS, old.task, new.task),
        (STUDENT_SETTING, STUDENTS, old.student, new.student),
    ):
        if class_of(before) is not class_of(after):
            yield name, registry.name_of(before), registry.name_of(after)


def _settled(experiment: Experiment, other: Experiment) -> Experiment:
    """Return `experiment` with the settings of `other` that decide on nothing that is learned."""
    learner = replace(experiment.learner, checkpoint_every=other.learner.checkpoint_every)
    server = experiment.server
    if server and other.server:  # it may have moved
        place = {
            each.name: vars(other.server)[each.name] for each in fields(server) if not each.compare
        }
        server = replace(server, **place)
    return replace(
        experiment, keep_checkpoint=other.keep_checkpoint, learner=learner, server=server
    )


def words_of_differences(different: Sequence[Difference]) -> str:
    """Return some settings that differ, as options with both values, and the number of others.

    The number of updates comes last, for it alone may be raised.
    """
    ordered = sorted(different, key=lambda each: each[0] == UPDATES)
    named = [
        f"--{name.replace('_', '-')} {after} where it has {before}"
        for name, before, after in ordered[:MOST_NAMED]
    ]
    others = len(ordered) - len(named)
    return ", ".join(named) + (f" (and {others} more)" if others else "")
