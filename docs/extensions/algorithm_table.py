"""Directive that lists the registered algorithms, each as its own docstring describes it.

A docstring says `Roll-in: ... Label: ... Loss: ...`. The page of an algorithm is the one that
includes its file, so a new algorithm is in the table as soon as it is registered and has a page.
"""

import inspect
import re
from pathlib import Path

from command_help import prose
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes
from sphinx.application import Sphinx

from textgen_agents import AGENTS
from textgen_agents.agent import Agent

PAGES = Path(__file__).parents[1] / "algorithms"
DESCRIPTION = re.compile(
    r"Roll-in:\s+(.+?)\s+Label:\s+(.+?)\s+Loss:\s+(.+?)(?=\.\s|\.$|\n\n|\s+Differs from)",
    re.DOTALL,
)
COLUMNS = {"name": 12, "roll-in": 38, "label": 26, "loss": 24}
"""Heading -> width in parts of the table's."""


def page_of(agent: type[Agent]) -> str | None:
    """Return the name of the page that includes the file of `agent`; None if none does."""
    included = f"../../agents/{Path(inspect.getfile(agent)).name}\n"
    pages = [page for page in sorted(PAGES.glob("*.md")) if included in page.read_text()]
    return pages[0].stem if pages else None


def name_cell(name: str, agent: type[Agent]) -> nodes.paragraph:
    """Return the name of an algorithm, as a link to its page where there is one."""
    page, literal = page_of(agent), nodes.literal(name, name)
    if page is None:
        return nodes.paragraph("", "", literal)
    link = addnodes.pending_xref(
        "",
        literal,
        refdomain="std",
        reftype="doc",
        refexplicit=True,
        reftarget=f"/algorithms/{page}",
    )
    return nodes.paragraph("", "", link)


def description_of(agent: type[Agent]) -> list[str]:
    """Return roll-in, label and loss from the docstring; empty texts where it says none."""
    found = DESCRIPTION.search(inspect.getdoc(agent) or "")
    said = found.groups() if found else ("", "", "")
    return [" ".join(text.split()).rstrip(".") for text in said]


class AlgorithmTable(Directive):
    """A table with a line for each registered algorithm."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        self.state.document.settings.env.note_reread()  # it depends on all of the code
        head = nodes.row("", *[_cell(nodes.paragraph("", title)) for title in COLUMNS])
        lines = [
            nodes.row(
                "",
                _cell(name_cell(name, AGENTS[name])),
                *[
                    _cell(nodes.paragraph("", "", *prose(text)))
                    for text in description_of(AGENTS[name])
                ],
            )
            for name in AGENTS
        ]
        group = nodes.tgroup("", cols=len(COLUMNS))
        group += [nodes.colspec(colwidth=width) for width in COLUMNS.values()]
        group += [nodes.thead("", head), nodes.tbody("", *lines)]
        return [nodes.table("", group)]


def _cell(paragraph: nodes.paragraph) -> nodes.entry:
    return nodes.entry("", paragraph)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("algorithm-table", AlgorithmTable)
    return {"parallel_read_safe": True}
