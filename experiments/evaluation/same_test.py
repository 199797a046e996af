"""Runs of one table may differ in what they learned from, and not in what they are judged by."""

from collections.abc import Sequence
from pathlib import Path

from textgen_env.tasks.task import TaskConfig, TextTask
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import Run, RunError, flat
from textgen_experiments.runs.records import to_json


def check_same_test(task: TextTask, folders: Sequence[Path], runs: Sequence[Run]) -> None:
    """Raise unless all runs are judged by the test pairs of the first one.

    Tasks with the same settings are not built again.

    Args:
        task: that of the first run.
        folders: of the runs.
        runs: their configurations.

    Raises:
        RunError: a run has other test pairs, lengths or language.
    """
    first = runs[0].experiment.task
    for folder, run in zip(folders, runs, strict=True):
        config = run.experiment.task
        if config == first:
            continue
        other = build_task(config, task.tokenizer)
        if _judged_by(other) != _judged_by(task):
            raise RunError(
                f"runs in one table must have the test pairs of {folders[0]}, got others in "
                f"{folder}: it has {_words_of_difference(first, config)}"
            )


def _judged_by(task: TextTask) -> tuple[object, ...]:
    return list(task.test), task.max_target_length, task.target_language


def _words_of_difference(first: TaskConfig, other: TaskConfig) -> str:
    """Return the first setting of two tasks that differs, as an option with both values."""
    before, after = (flat(to_json(each)) for each in (first, other))
    names = [
        name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)
    ]
    option = names[0].replace("_", "-")
    return f"--task.{option} {after.get(names[0])} in place of {before.get(names[0])}"
