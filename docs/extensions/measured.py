"""Directive that shows what was measured of algorithms, from the files in `docs/results`.

A page says `measured` with the names of its algorithms. Each row is from a file that its command
wrote; the row of the agent that others are compared with is always there.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from stored_results import RESULTS, table

BASELINE = "seqkd"
STUDY = "textgen study --updates 150"


@dataclass(frozen=True)
class Experiment:
    """Experiment whose results are stored.

    Attributes:
        file: name of the file in `docs/results`.
        key: of its list of rows there.
        title: what was done, in a few words.
        command: the command that wrote the file, but for the number of seeds.
    """

    file: str
    key: str
    title: str
    command: str

    def rows(self) -> list[Mapping[str, Any]]:
        """Return its rows, one for each agent."""
        return json.loads((RESULTS / self.file).read_text(encoding="utf-8"))[self.key]


EXPERIMENTS = (
    Experiment("study.json", "rows", "150 updates from one trained start", STUDY),
    Experiment(
        "paper-order.json",
        "copied",
        "1,000 updates from the teacher's layers",
        "textgen paper-order --settings copied",
    ),
    Experiment(
        "paper-order.json",
        "scratch",
        "2,500 updates from random weights",
        "textgen paper-order --settings scratch",
    ),
)


def rows_about(names: list[str]) -> Iterator[dict[str, str]]:
    """Yield a line of the table for each experiment with one of the agents, and for each agent.

    Raises:
        ValueError: nothing was measured of an agent.
    """
    unknown = set(names)
    for experiment in EXPERIMENTS:
        rows = experiment.rows()
        if not any(row["name"] in names for row in rows):
            continue
        for row in rows:
            unknown.discard(row["name"])
            if row["name"] in (*names, BASELINE):
                yield line_of(experiment, row)
    if unknown:
        raise ValueError(f"names must be of agents in {RESULTS}, got {sorted(unknown)}")


def line_of(experiment: Experiment, row: Mapping[str, Any]) -> dict[str, str]:
    """Return a line of the table, by its headings."""
    better, worse = row["better"], row["worse"]
    beside = "" if better is None else f"better in {better}, worse in {worse}"
    return {
        "experiment": experiment.title,
        "agent": row["name"],
        "seeds": str(row["seeds"]),
        "BLEU": f"{row['bleu']:.1f}",
        "chrF": f"{row['chrf']:.1f}",
        f"beside {BASELINE} (p < 0.05)": beside,
        "command": f"{experiment.command} --seeds {row['seeds']}",
    }


class Measured(Directive):
    """A table of what was measured of the agents that are named."""

    required_arguments = 1
    optional_arguments = 100

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        for experiment in EXPERIMENTS:
            self.state.document.settings.env.note_dependency(str(RESULTS / experiment.file))
        return [table([*rows_about(self.arguments)])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
