"""Reader of the runs of a report; runs that do not belong on one page are errors.

Nothing is measured here. A file that a finished run lacks is an error that says how to make it. A
run that is still being trained has gaps instead, as have infinite and undefined figures.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from textgen_experiments.evaluation.results import (
    EXPOSURE,
    RESULTS,
    SAMPLES,
    Sample,
    digest_of_weights,
    run_names,
)
from textgen_experiments.reporting import schema
from textgen_experiments.reporting.schema import Json
from textgen_experiments.runs.experiment import agent_name
from textgen_experiments.runs.folder import (
    CONFIG,
    OUTCOME,
    Run,
    RunError,
    check_same_parts,
    read_unchanged,
)
from textgen_experiments.runs.metrics import METRICS
from textgen_experiments.runs.old_names import with_current_names


@dataclass(frozen=True)
class Evaluation:
    """Results of `textgen evaluate` in a run's folder.

    Attributes:
        teacher: the teacher's row; None if the run has no teacher.
        row: the run's row.
        machine: where speed was measured.
        task: "name" and number of "test_pairs".
        samples: the test pairs in order, with the texts written for them.
        exposure: figures of exposure bias; None if they were not measured.
    """

    teacher: Json | None
    row: Json
    machine: Json
    task: Json
    samples: list[Sample]
    exposure: Json | None


@dataclass(frozen=True)
class ReportedRun:
    """A run of the report.

    Attributes:
        name: its own among the runs of the report.
        folder: its folder.
        run: its configuration.
        commit: commit of the code that began it; None outside a repository.
        command: the command that began it; None in folders of earlier versions.
        records: figures of its updates and evaluations, in order.
        evaluation: results on the test split; None while it is being trained.
    """

    name: str
    folder: Path
    run: Run
    commit: str | None
    command: str | None
    records: list[Json]
    evaluation: Evaluation | None

    @property
    def agent(self) -> str:
        """Name of the algorithm that trains the run."""
        return agent_name(self.run.experiment.agent)

    @property
    def progress(self) -> str:
        """Number of updates done and to be done, in words."""
        done = self.records[-1]["update"] if self.records else 0
        return f"update {done:,} of {self.run.experiment.learner.updates:,}"

    @property
    def records_are_whole(self) -> bool:
        """True if the records reach the evaluation after the last update."""
        last = self.records[-1] if self.records else {}
        return last.get("update") == self.run.experiment.learner.updates and "bleu" in last

    @property
    def exposure(self) -> Json:
        """Figures of exposure bias; empty if they were not measured."""
        return (self.evaluation.exposure if self.evaluation else None) or {}

    @property
    def positions(self) -> Json:
        """Figures of exposure bias by position, for each writer of prefixes; empty without any."""
        return self.exposure.get("positions") or {}

    @property
    def row(self) -> Json | None:
        """Row of the results; None while the run is being trained."""
        return self.evaluation.row if self.evaluation else None

    @property
    def samples(self) -> list[Sample]:
        """Test pairs with the run's texts; empty while it is being trained."""
        return self.evaluation.samples if self.evaluation else []


def read_reported_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Return the runs, in the given order.

    Raises:
        RunError: there is no run, a finished one lacks a file or has a broken one, or they do not
            belong on one page.
    """
    runs = [_read_reported_run(*each) for each in zip(run_names(folders), folders, strict=True)]
    for run in runs[1:]:
        check_same_parts("report", (runs[0].folder, runs[0].run), (run.folder, run.run))
    evaluated = [run for run in runs if run.evaluation]
    for run in evaluated[1:]:
        _check_comparable(evaluated[0], run)
    return runs


def _read_reported_run(name: str, folder: Path) -> ReportedRun:
    run, finished = read_unchanged(folder), (folder / OUTCOME).is_file()
    metrics, check = folder / METRICS, schema.check_record
    records = _read_lines(metrics, check, growing=not finished) if metrics.is_file() else []
    origin = _read_json(folder / CONFIG, schema.ORIGIN_FIELDS)
    return ReportedRun(
        name=name,
        folder=folder,
        run=run,
        commit=origin.get("commit"),
        command=origin.get("command"),
        records=records,
        evaluation=_read_evaluation(folder) if finished else None,
    )


def _read_evaluation(folder: Path) -> Evaluation:
    missing = [name for name in (RESULTS, SAMPLES) if not (folder / name).is_file()]
    if missing:
        raise RunError(
            f"{folder} must hold {' and '.join(missing)}, which it lacks: "
            f"run `textgen evaluate {folder}` first"
        )
    results, exposure = _read_json(folder / RESULTS, {}), None
    if (folder / EXPOSURE).is_file():
        exposure = _read_json(folder / EXPOSURE, schema.EXPOSURE_FIELDS)
    try:
        lines = _read_lines(folder / SAMPLES, partial(schema.check, fields=schema.SAMPLE_FIELDS))
        samples = [Sample(**line) for line in lines]
        *teacher, row = results["rows"]
        for each in (*teacher, row):
            schema.check(each, schema.ROW_FIELDS)
        machine, task = dict(results["machine"]), dict(results["task"])
        schema.check(task, schema.TASK_FIELDS)
        if len(teacher) > 1 or len(samples) != task["test_pairs"]:
            raise ValueError(
                f"there must be at most 2 rows and {task['test_pairs']} samples, got "
                f"{1 + len(teacher)} rows and {len(samples)} samples"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder} must hold the {RESULTS} and {SAMPLES} of one evaluation: {error}: "
            f"{_again(folder)}"
        ) from error
    if results.get("weights", own := digest_of_weights(folder)) != own:
        raise RunError(
            f"{folder} must be evaluated after it was trained, got a {RESULTS} of other weights: "
            f"{_again(folder)}"
        )
    return Evaluation(teacher[0] if teacher else None, row, machine, task, samples, exposure)


def _read_json(path: Path, fields: Mapping[str, schema.FieldRule]) -> Json:
    try:
        content = _loads(path.read_text(encoding="utf-8"))
        schema.check(content, fields)
    except ValueError as error:
        raise RunError(f"{path} must be whole: {error}: {_again(path.parent)}") from error
    return content


def _read_lines(
    path: Path, check: Callable[[object], None], *, growing: bool = False
) -> list[Json]:
    """Return the objects in the lines of `path`; a growing file may have a last line cut short."""
    try:
        text = path.read_text(encoding="utf-8")
        *lines, rest = text.split("\n")  # texts may hold other line ends
        records = [_loads(line) for line in (lines if growing or not rest else [*lines, rest])]
        for record in records:
            check(record)
    except ValueError as error:
        raise RunError(f"{path} must have a JSON object in each line: {error}") from error
    return records


def _loads(text: str) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """Return a JSON value with the names of today, and None for NaN and infinities."""
    return json.loads(text, parse_constant=lambda _: None, object_hook=with_current_names)


def _again(folder: Path) -> str:
    return f"run `textgen evaluate {folder}` again"


def _check_comparable(first: ReportedRun, other: ReportedRun) -> None:
    """Raise unless both runs were evaluated on the same pairs, beside the same teacher's texts."""
    assert first.evaluation, "only evaluated runs are compared"
    assert other.evaluation, "only evaluated runs are compared"
    ours, theirs = (
        (
            each.row["signature"],
            [(sample.source, sample.reference, sample.teacher) for sample in each.samples],
        )
        for each in (first.evaluation, other.evaluation)
    )
    if ours != theirs:
        raise RunError(
            "runs in one report must be evaluated on the same texts by the same metrics, got "
            f"{first.folder} and {other.folder} with others: run one `textgen evaluate` on both"
        )
