"""Settings in which runs differ, and the commits of the code that trained them."""

from collections.abc import Sequence

from textgen_experiments.reporting.load_runs import ReportedRun
from textgen_experiments.reporting.tables import Column, ReportTable, report_table
from textgen_experiments.runs.plain_settings import differing, settings_of_run

NUM_DIGITS = 10  # of a commit


def settings_table(runs: Sequence[ReportedRun]) -> ReportTable:
    """Return a table of the settings whose values differ between the runs, and of their commits."""
    values = {run.name: settings_of_run(run.run) for run in runs}
    columns = [
        Column(name, lambda row, name=name: row.get(name), "{}") for name in differing(values)
    ]
    commit = Column(
        "commit", lambda row: row["commit"], "{}", help="of the code that trained the run"
    )
    commits = {run.name: run.commit and run.commit[:NUM_DIGITS] for run in runs}
    rows = {name: {**values[name], "commit": commits[name]} for name in values}
    return report_table([*columns, commit], runs, rows)
