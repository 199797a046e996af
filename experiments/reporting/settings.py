"""Settings in which runs differ, and the commits of the code that trained them."""

from collections.abc import Mapping, Sequence

from textgen_experiments.reporting.load_runs import ReportedRun
from textgen_experiments.reporting.schema import Json
from textgen_experiments.reporting.tables import Column, ReportTable, report_table
from textgen_experiments.runs.records import to_json

NUM_DIGITS = 10  # of a commit


def settings_table(runs: Sequence[ReportedRun]) -> ReportTable:
    """Return a table of the settings whose values differ between the runs, and of their commits."""
    values = {run.name: settings_of(run) for run in runs}
    columns = [
        Column(name, lambda row, name=name: row.get(name), "{}") for name in differing(values)
    ]
    commit = Column(
        "commit", lambda row: row["commit"], "{}", help="of the code that trained the run"
    )
    commits = {run.name: run.commit and run.commit[:NUM_DIGITS] for run in runs}
    rows = {name: {**values[name], "commit": commits[name]} for name in values}
    return report_table([*columns, commit], runs, rows)


def differing(values: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the names of the settings with more than one value, or that only some runs have."""
    names = dict.fromkeys(name for settings in values.values() for name in settings)
    return [name for name in names if len({each.get(name) for each in values.values()}) > 1]


def settings_of(run: ReportedRun) -> dict[str, str]:
    """Return the settings of a run in words, by the names that options have."""
    experiment = to_json(run.run.experiment)
    names = {"agent": run.agent, "precision": run.run.precision}
    return {**names, **plain_settings(experiment), **names}


def plain_settings(value: Json, name: str = "") -> dict[str, str]:
    """Return the leaves of a configuration in words, by path, such as `learner.batch-size`.

    A record stands for its kind under its own path; a list of plain values is one setting.
    """
    found = {}
    for key, item in value.items():
        path = f"{name}.{key}" if name else key
        path = path.replace("_", "-")
        if key == "type":
            found |= {name: str(item)} if name else {}
        elif isinstance(item, dict):
            found |= plain_settings(item, path)
        else:
            found[path] = _in_words(item)
    return found


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, dict):
        return " ".join(str(each) for each in value.values())
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
