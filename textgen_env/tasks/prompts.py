"""Prompts: a template around a source, for models that follow instructions or complete text.

A template is `str.format`'s, with `{source}` where the source goes: "Translate to English: {source}
English:". A brace that is meant as one is written twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from string import Formatter

from textgen_env.tasks.task import Pair, TextTask

BARE = "{source}"  # the source as it is


def check_prompt(name: str, template: str) -> None:
    """Raise `ValueError` unless `template`, called `name`, has the field source and no other."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"{name} must be a template, got {template!r} ({error}): write braces twice"
        ) from error
    fields = [field for _, field, _, _ in parts if field is not None]
    if set(fields) != {"source"}:
        raise ValueError(
            f"{name} must have the field {{source}} and no other, got {fields or 'none'} in "
            f"{template!r}: write braces twice that are no fields"
        )


def prompted(text: str, template: str) -> str:
    """Return `text` in `template`, which `check_prompt` let through."""
    return template.format(source=text)


def with_prompts(pairs: Sequence[Pair], template: str) -> list[Pair]:
    """Return the pairs with their sources in `template`; a view of the expert's own stays bare."""
    return [pair._replace(source=prompted(pair.source, template)) for pair in pairs]


def with_expert_prompts(task: TextTask, template: str) -> TextTask:
    """Return `task` with the expert's view of every pair in `template`; sources stay the same."""
    if template == BARE:
        return task
    return _with_views(task, lambda pair: prompted(pair.expert_view, template))


def with_expert_keys(task: TextTask, key_of: Callable[[Pair], str]) -> TextTask:
    """Return `task` with a key in front of the expert's view of every pair, and a space between.

    Args:
        task: its sources stay the same.
        key_of: pair -> one of the keys of a `KeyedExpert`.
    """
    return _with_views(task, lambda pair: f"{key_of(pair)} {pair.expert_view}")


def _with_views(task: TextTask, view_of: Callable[[Pair], str]) -> TextTask:
    """Return `task` with another view of the expert's for every pair."""

    def changed(pairs: Sequence[Pair]) -> list[Pair]:
        return [pair._replace(expert_source=view_of(pair)) for pair in pairs]

    return replace(
        task,
        train=changed(task.train),
        validation=changed(task.validation),
        test=changed(task.test),
        repeated=tuple(changed(task.repeated)),
    )
