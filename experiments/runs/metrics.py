"""Figures that a run has logged, `metrics.jsonl`: a line for each update and each evaluation."""

import json
from pathlib import Path

from textgen_experiments.runs.folder import write_text

METRICS = "metrics.jsonl"

LoggedRecord = dict[str, float]
"""Figures of an update or of an evaluation, and the number of the update as "update"."""


def read_metrics(folder: Path) -> list[LoggedRecord]:
    """Return what the run in `folder` has logged, in order, up to a line that was cut short."""
    path, records = folder / METRICS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def metrics_line(record: LoggedRecord) -> str:
    """Return the line of a record, with its end."""
    return json.dumps(record) + "\n"


def forget_after(folder: Path, update: int) -> None:
    """Remove the lines of updates after `update`, and a last line that was cut short.

    Raises:
        WriteError: the file cannot be written.
    """
    if (folder / METRICS).exists():
        kept = [record for record in read_metrics(folder) if record["update"] <= update]
        write_text(folder / METRICS, "".join(map(metrics_line, kept)))
