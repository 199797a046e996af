import io
import re

from rich.console import Console

from textgen_experiments.evaluation.tables import print_table

COLUMNS = ("model", "precision", "BLEU")


def printed(*sections, width=80, **options):
    """Return the lines that are printed for these sections."""
    console = Console(file=io.StringIO(), width=width)
    print_table("a title", COLUMNS, *sections, console=console, **options)
    return console.file.getvalue().splitlines()


def test_figures_are_aligned_to_the_right_and_the_first_column_to_the_left():
    row = printed([("a", "b", "1.0"), ("longer", "float32", "10.0")])[4]
    assert [cell[1:-1] for cell in row.split("│")[1:-1]] == ["a     ", "        b", " 1.0"]


def test_named_columns_are_aligned_to_the_left():
    row = printed([("a", "b", "1.0")], left=("precision",))[4]
    assert [cell[1:-1] for cell in row.split("│")[1:-1]] == ["    a", "b        ", " 1.0"]


def test_a_line_is_drawn_between_sections():
    rows = [("a", "b", "1.0")], [("c", "d", "2.0")]
    assert len(printed(*rows)) == len(printed([*rows[0], *rows[1]])) + 1


def test_a_narrow_console_cuts_no_cell():
    long = "x" * 100
    assert any(long in line for line in printed([(long, "float32", "1.0")], width=20))


def test_texts_are_not_read_as_markup():
    names = "[bold]run[/bold]", "[/de]", "[lr=1]x :snake:\\"
    lines = printed([names], caption="[red] :cat:")
    assert all(any(name in line for line in lines) for name in names)
    assert "[red] :cat:" in lines[-1]
    console = Console(file=io.StringIO())
    print_table("[/de] :cat:", ["[a]", ":cat:"], [], console=console)
    assert "[/de] :cat:" in console.file.getvalue()
    assert re.search(r"\[a\] +┃ +:cat:", console.file.getvalue())


def test_standard_output_is_the_default(capsys):
    print_table("a title", COLUMNS, [("a", "b", "1.0")])
    assert "a title" in capsys.readouterr().out
