"""Table of the report with a row for each group of runs that differ only in their seed."""

from collections.abc import Sequence
from dataclasses import asdict

from textgen_experiments.evaluation.seed_groups import SeededRun, group_rows
from textgen_experiments.reporting.charts import looks_of
from textgen_experiments.reporting.load_runs import ReportedRun
from textgen_experiments.reporting.schema import Json
from textgen_experiments.reporting.tables import MODEL_COLUMNS, Column, ReportTable, table_of
from textgen_experiments.reporting.written_texts import WrittenTexts

SEEDS = Column("seeds", lambda row: len(row["seeds"]) if row else None, "{:,.0f}")
DEVIATION = Column(
    "deviation", lambda row: row.get("bleu_deviation"), help="standard deviation of one run's BLEU"
)
COLUMNS = (SEEDS, MODEL_COLUMNS[0], DEVIATION, *MODEL_COLUMNS[1:])


def group_table(runs: Sequence[ReportedRun], texts: WrittenTexts | None) -> ReportTable | None:
    """Return the table of groups, None where no two evaluated runs differ only in their seed.

    A group is tested against that of the baseline of the runs' evaluation, and looks as its first
    run.

    Args:
        runs: of the report.
        texts: of the evaluated runs; None if no run was evaluated.
    """
    if texts is None:
        return None
    evaluated = [run for run in runs if run.evaluation]
    baseline = next((row.get("baseline") for run in evaluated if (row := run.row)), None)
    seeded = [
        SeededRun(run.name, run.run.experiment, run.row or {}, texts.systems[run.name])
        for run in evaluated
    ]
    rows = group_rows(seeded, texts.references, texts.language, baseline)
    if not rows:
        return None
    looks = looks_of([run.name for run in runs], teacher=False)
    objects: dict[str, Json] = {row.model: asdict(row) for row in rows}
    settings = [_setting(name) for name in rows[0].settings]
    return table_of([*settings, *COLUMNS], {row.model: looks[row.runs[0]] for row in rows}, objects)


def _setting(name: str) -> Column:
    """Return the column of a setting in which the groups differ."""
    return Column(name, lambda row: row["settings"][name] if row else None, "{}")
