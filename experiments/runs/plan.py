"""Plan of many runs: a file with a line for each cell, and which cells are done.

A cell is a run in a folder of its own. `plan.jsonl` holds its folder, the digest of its settings
and the settings as `config.json` has them. A cell is done when its folder holds an outcome and, in
`cell.json`, the digest of these settings. Whoever reads the plan later, on another machine too,
thus knows what is left without a further record of it.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from textgen_experiments.runs.differences import differences, settings_digest, words_of_differences
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import (
    BAD_CONTENT,
    CELL,
    CONFIG,
    OUTCOME,
    RunError,
    contents,
    write_text,
)
from textgen_experiments.runs.lock import locked
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.parallel import Work, train_in_parallel
from textgen_experiments.runs.records import from_json, to_json
from textgen_experiments.runs.setup import check_parts
from textgen_experiments.runs.train import Show

PLAN = "plan.jsonl"
Cells = Mapping[Path, Experiment]
"""Folder of each run of a plan -> its settings."""


class PlanError(ValueError):
    """Plan that cannot be done as asked, or cells of it that have failed."""


def begin_plan(
    output: Path, cells: Cells, check: Callable[[Experiment], object] = check_parts
) -> None:
    """Write the plan, or check that it is the one in the file, to which new cells are added.

    A plan of which no cell has begun is replaced.

    Args:
        output: folder of the plan.
        cells: runs in folders below it.
        check: function that raises where settings cannot be trained.

    Raises:
        PlanError: a cell cannot be trained; a cell has other settings than in the file, of which
            one is named with both values; or the folder is that of a run. Nothing is written then.
        RunError: the file cannot be understood.
    """
    for folder, experiment in cells.items():
        try:
            check(experiment)
        except (ValueError, OSError) as error:
            raise PlanError(f"{folder.name}: {error}") from error
    with locked(output, waits=True):  # other shards may begin it now
        _write_plan(output, cells)


def read_plan(path: Path) -> dict[Path, Experiment]:
    """Return the cells that a plan's file holds.

    Raises:
        RunError: the file cannot be understood, or a part of a cell is of a plugin that is not
            loaded.
    """
    try:
        cells = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {path.parent / cell["folder"]: from_json(cell["settings"]) for cell in cells}
    except BAD_CONTENT as error:
        raise RunError(f"{path} must hold a cell in each line, got: {error!r}") from error


def is_done(folder: Path, experiment: Experiment) -> bool:
    """Return True if the cell's outcome is there, and is that of these settings."""
    path = folder / CELL
    if not (path.is_file() and (folder / OUTCOME).is_file()):
        return False
    try:
        return json.loads(path.read_text(encoding="utf-8"))["digest"] == settings_digest(experiment)
    except BAD_CONTENT as error:
        raise RunError(f"{path} must hold the digest of a cell, got: {error!r}") from error


def not_done(cells: Cells) -> dict[Path, Experiment]:
    """Return the cells that are not done yet."""
    return {folder: cell for folder, cell in cells.items() if not is_done(folder, cell)}


def do_cell(work: Work, experiment: Experiment, folder: Path, show: Show) -> Outcome:
    """Do the work of a cell, and note in its folder that it is done."""
    outcome = work(experiment, folder, show)
    write_text(folder / CELL, json.dumps({"digest": settings_digest(experiment)}) + "\n")
    return outcome


def do_cells(cells: Cells, work: Work, at_once: int | None) -> None:
    """Do the work of cells in processes of this machine, and go on where one fails.

    Args:
        cells: perhaps none.
        work: function called for each; importable by its name.
        at_once: cells at the same time; None for one a core.

    Raises:
        PlanError: some have failed, after all others are done; names the first one with its error.
        TrainingStopped: as `train_in_parallel`.
    """
    failed: dict[Path, Exception] = {}
    train_in_parallel(cells, partial(do_cell, work), at_once, failed.__setitem__)
    if failed:
        folder, error = next(iter(failed.items()))
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise PlanError(
            f"{len(failed)} of {len(cells)} runs failed, first {folder.name}: {kind}{error}; the "
            "same command tries them again"
        ) from error


def _write_plan(output: Path, cells: Cells) -> None:
    """Write the plan's file, if it has not got all cells, or raise where they are others."""
    path = output / PLAN
    if (output / CONFIG).exists():
        raise PlanError(f"{output} must not be the folder of a run, got one: choose another folder")
    known = read_plan(path) if path.is_file() else {}
    if not any(map(_has_begun, known)):
        known = {}
    for folder, experiment in cells.items():
        if folder in known:
            _check_same_cell(path, folder, known[folder], experiment)
    if new := {folder: cells[folder] for folder in cells if folder not in known}:
        lines = [_line(output, *cell) for cell in {**known, **new}.items()]
        write_text(path, "".join(lines))


def _line(output: Path, folder: Path, experiment: Experiment) -> str:
    """Return the line of a cell, its folder relative to the plan's."""
    cell = {
        "folder": folder.relative_to(output).as_posix(),
        "digest": settings_digest(experiment),
        "settings": to_json(experiment),
    }
    return json.dumps(cell, ensure_ascii=False) + "\n"


def _has_begun(folder: Path) -> bool:
    """Return True if a cell's folder holds more than the settings that it is to begin with."""
    return bool(contents(folder) - {CONFIG})


def _check_same_cell(path: Path, folder: Path, before: Experiment, now: Experiment) -> None:
    """Raise `PlanError` if the settings of a cell are not those in the plan's file."""
    if different := list(differences(before, now)):
        raise PlanError(
            f"{folder.name} must have the settings that it has in {path}, got "
            f"{words_of_differences(different)}: give the settings of the plan, or choose another "
            "output"
        )
