"""Tables that commands print and write their results as."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDEST = 10_000  # characters; more than any table takes


def print_table(
    title: str,
    columns: Sequence[str],
    *sections: Sequence[Sequence[str]],
    caption: str | None = None,
    left: Collection[str] = (),
    console: Console | None = None,
) -> None:
    """Print rows of cells below their headings, as wide as the cells need.

    Args:
        title: shown above the table; texts are printed as they are, without rich's markup.
        columns: headings.
        *sections: rows of cells; cells missing at the end of a row stay empty. A line is drawn
            between two sections.
        caption: shown below the table.
        left: headings of the columns of text, aligned to the left; the first column by default.
        console: where to print, widened if need be; standard output by default.
    """
    below = None if caption is None else Text(caption, style="table.caption")
    table = Table(title=Text(title, style="table.title"), caption=below)
    for name in columns:
        justify = "left" if name in (left or columns[:1]) else "right"
        table.add_column(Text(name), justify=justify)
    for rows in sections:
        for row in rows:
            table.add_row(*map(Text, row))  # strings are read for markup and emoji codes
        table.add_section()
    console = console or Console(markup=False, emoji=False)
    options = console.options.update(max_width=WIDEST)
    needed = Measurement.get(console, options, table).maximum
    console.width = max(console.width, needed)  # a pipe has 80 columns and would cut the cells
    console.print(table)


def optional_cell(value: float | None, form: str) -> str:
    """Return a figure in `form`, a format of `str.format`; a dash where it was not measured."""
    return "-" if value is None else form.format(value)


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """Return the mean of at least one figure, None where one of them was not measured."""
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.mean(known) if len(known) == len(found) else None


def markdown_table(rows: Sequence[Mapping[str, str]], *, left: int = 1) -> str:
    """Return a Markdown table without a line end after it.

    Args:
        rows: cells of each row by their headings, the same in all of them; at least one row.
        left: number of columns, the first ones, that are aligned to the left.
    """
    headings = list(rows[0])
    aligned = ["---"] * left + ["---:"] * (len(headings) - left)
    lines = [f"| {' | '.join(headings)} |", f"|{'|'.join(aligned)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)])
