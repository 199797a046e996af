"""The stored results: tables of pages say what the files say, and pages of agents show them."""

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
PAGES = sorted((DOCS / "algorithms").glob("*.md"))
BENCHMARKS = (DOCS / "benchmarks.md").read_text(encoding="utf-8")


def stored(file, key):
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))[key]


def lines_of(section):
    """Return the cells of all lines of tables below a heading of the page of benchmarks."""
    text = BENCHMARKS.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def start_of(row, cells):
    """Return whether a line begins with a row's name and its BLEU and chrF, with a deviation."""
    name, bleu, chrf = row["name"], f"{row['bleu']:.1f}", f"{row['chrf']:.1f}"
    error = row.get("bleu_error")
    return cells[:3] == [name, bleu if error is None else f"{bleu} ± {error:.1f}", chrf]


@pytest.mark.parametrize(
    ("file", "key", "section"),
    [
        ("study.json", "rows", "All agents from one start"),
        ("paper-order.json", "copied", "The paper's order"),
        ("paper-order.json", "scratch", "The paper's order"),
    ],
)
def test_tables_of_agents_are_those_of_the_files(file, key, section):
    lines = lines_of(section)
    for row in stored(file, key):
        assert any(start_of(row, cells) for cells in lines), row["name"]


def test_the_curve_of_quality_and_speed_is_that_of_its_file():
    lines = lines_of("Quality against speed")
    for row in stored("speed-curve.json", "rows"):
        figures = [f"{row['bleu']:.1f}", f"{row['chrf']:.1f}", f"{row['parameters'] / 1e6:.2f} M"]
        expected = [row["model"], row["precision"], *figures]
        expected += [f"{row['tokens_per_second']:,.0f}", f"{row['speedup']:.1f}"]
        assert expected in lines


def test_summaries_are_those_of_their_file():
    lines = lines_of("Summarization")
    for row in stored("descriptions.json", "rows"):
        rouge = " / ".join(f"{row[name]:.1f}" for name in ("rouge1", "rouge2", "rougeL"))
        bleu = f"{row['bleu']:.1f} ± {row['bleu_confidence']:.1f}"
        parameters = f"{row['parameters'] / 1e6:.2f} M"
        assert any({rouge, bleu, parameters} <= {*cells} for cells in lines), row["model"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_show_what_was_measured_of_their_agents(page):
    text = page.read_text(encoding="utf-8")
    options = re.findall(r"^```{agent-options} (.+)$", text, re.MULTILINE)
    measured = {row["name"] for row in stored("study.json", "rows")}
    expected = [name for line in options for name in line.split() if name in measured]
    shown = re.findall(r"^```{measured} (.+)$", text, re.MULTILINE)
    assert [name for line in shown for name in line.split()] == expected
