"""Directive that shows what was measured of algorithms, from the files in `docs/results`.

A page says `measured` with the names of its algorithms. Each row is from a file that its command
wrote; the row of the agent that others are compared with is always there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from stored_results import RESULTS, table

BASELINE = "seqkd"


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
    Experiment(
        "study.json",
        "rows",
        "150 updates from one trained start",
        "textgen study --updates 150",
    ),
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


def rows_about(experiment: Experiment, names: list[str]) -> list[Mapping[str, Any]]:
    """Return an experiment's rows of the agents and of the baseline; none without the former."""
    rows = [row for row in experiment.rows() if row["name"] in (*names, BASELINE)]
    return rows if any(row["name"] in names for row in rows) else []


def line_of(experiment: Experiment, row: Mapping[str, Any]) -> dict[str, str]:
    """Return a line of the table, by its headings."""
    better, worse = row["better"], row["worse"]
    return {
        "experiment": experiment.title,
        "agent": row["name"],
        "seeds": str(row["seeds"]),
        "BLEU": f"{row['bleu']:.1f}",
        "chrF": f"{row['chrf']:.1f}",
        f"beside {BASELINE} (p < 0.05)": ""
        if better is None
        else f"better in {better}, worse in {worse}",
    }


def command_of(experiment: Experiment, seeds: int) -> nodes.list_item:
    """Return a line that says how an experiment's rows were made."""
    command = f"{experiment.command} --seeds {seeds}"
    text = nodes.paragraph("", f"{experiment.title}: ", nodes.literal(command, command))
    return nodes.list_item("", text)


class Measured(Directive):
    """A table of what was measured of the agents that are named, and its commands."""

    required_arguments = 1
    optional_arguments = 100

    def run(self) -> list[nodes.Node]:
        """Return the table and the list of the commands.

        Raises:
            ValueError: nothing was measured of an agent.
        """
        for experiment in EXPERIMENTS:
            self.state.document.settings.env.note_dependency(str(RESULTS / experiment.file))
        found = {each: rows_about(each, self.arguments) for each in EXPERIMENTS}
        lines = [line_of(each, row) for each, rows in found.items() for row in rows]
        if missing := {*self.arguments} - {line["agent"] for line in lines}:
            raise ValueError(f"names must be of agents in {RESULTS}, got {sorted(missing)}")
        commands = [command_of(each, rows[0]["seeds"]) for each, rows in found.items() if rows]
        return [table(lines), nodes.bullet_list("", *commands)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
