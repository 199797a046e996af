"""A header in a file that has none is refused, and a pair that looks a little like one is kept."""

import pytest

from textgen_env.tasks.columns import Columns
from textgen_env.tasks.headers import check_no_header
from textgen_env.tasks.task import DataError, Pair
from textgen_env.tasks.text_files import TextFilesConfig, read_pairs, text_files


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("source\treference", False),
        ("SRC\tTgt", False),
        ('"input"\t"output" ', False),
        ("target\tsource", True),
    ],
)
def test_a_header_in_tsv_is_refused_with_what_to_do(tmp_path, line, order):
    path = tmp_path / "pairs.tsv"
    path.write_text(f"{line}\nein Haus\ta house\n")
    with pytest.raises(
        DataError, match=r"pairs\.tsv, line 1: .* got the header .* remove it"
    ) as found:
        read_pairs("train", path, Columns("source", "reference"))
    assert ("put the source before the reference" in str(found.value)) == order


def test_a_header_in_aligned_files_and_in_files_of_sources_is_refused(tmp_path):
    files = tmp_path / "a.src", tmp_path / "a.tgt"
    for path, name in zip(files, ("source", "target"), strict=True):
        path.write_text(f"{name}\na text\n")
    with pytest.raises(DataError, match=r"a\.src and .*a\.tgt, line 1: "):
        text_files(TextFilesConfig(files, files, files))
    pairs, sources = tmp_path / "pairs.tsv", tmp_path / "more.tsv"
    pairs.write_text("ein Haus\ta house\n")
    sources.write_text("source\ttarget\nein Baum\t\n")
    with pytest.raises(DataError, match=r"more\.tsv, line 1: "):
        text_files(TextFilesConfig(pairs, pairs, pairs, sources=(sources,)))


@pytest.mark.parametrize(
    "pair",
    [
        Pair("Quelle", "source"),
        Pair("source", "source"),
        Pair("the source", "the target"),
        Pair("source", None),
        Pair("", ""),
    ],
)
def test_other_first_lines_are_pairs(pair):
    check_no_header(pair, "pairs.tsv, line 1")
