"""Directive that shows the tables in `docs/results`, each from the JSON that its command wrote."""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

RESULTS = Path(__file__).parents[1] / "results"
Cell = str | int | float | bool | None


def cell_text(value: Cell) -> str:
    """Return a value as a table shows it; empty where nothing was measured."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def columns_of(rows: list[dict[str, Cell]]) -> list[str]:
    """Return the figures that some row has; signatures and nested records are left to the file."""
    return [
        name
        for name in rows[0]
        if not name.endswith("signature")
        and any(row.get(name) is not None for row in rows)
        and not any(isinstance(row.get(name), dict | list) for row in rows)
    ]


def table(rows: list[dict[str, Cell]]) -> nodes.table:
    """Return a table with a line for each row."""
    names = columns_of(rows)
    lines = [[name.replace("_", " ") for name in names]]
    lines += [[cell_text(row.get(name)) for name in names] for row in rows]
    made = [
        nodes.row("", *[nodes.entry("", nodes.paragraph("", text)) for text in line])
        for line in lines
    ]
    group = nodes.tgroup("", cols=len(names))
    group += [nodes.colspec(colwidth=1) for _ in names]
    group += [nodes.thead("", made[0]), nodes.tbody("", *made[1:])]
    return nodes.table("", group)


class StoredResults(Directive):
    """A section for every file of results that has rows."""

    def run(self) -> list[nodes.Node]:
        """Return the sections, by the files' names."""
        environment, made = self.state.document.settings.env, []
        for path in sorted(RESULTS.rglob("*.json")):
            environment.note_dependency(str(path))
            rows = json.loads(path.read_text(encoding="utf-8")).get("rows")
            if rows:
                name = path.relative_to(RESULTS).as_posix()
                section = nodes.section("", nodes.title("", name), ids=[nodes.make_id(name)])
                section += table(rows)
                made.append(section)
        return made


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("stored-results", StoredResults)
    return {"parallel_read_safe": True}
