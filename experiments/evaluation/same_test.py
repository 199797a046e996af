"""Runs of one table may differ in what they learned from, and not in what they are judged by."""

from collections.abc import Sequence
from pathlib import Path

from textgen_env.tasks.task import TextTask
from textgen_experiments.runs.differences import differences
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import Run, RunError


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
    first, same = runs[0].experiment, [runs[0].experiment.task]
    for folder, run in zip(folders, runs, strict=True):
        config = run.experiment.task
        if config in same:
            continue
        if _judged_by(build_task(config, task.tokenizer)) != _judged_by(task):
            name, before, after = next(
                each for each in differences(first, run.experiment) if each[0].startswith("task.")
            )
            raise RunError(
                f"runs in one table must have the test pairs of {folders[0]}, got others in "
                f"{folder}: it has --{name.replace('_', '-')} {after} in place of {before}"
            )
        same.append(config)


def _judged_by(task: TextTask) -> tuple[object, ...]:
    return list(task.test), task.max_target_length, task.target_language
