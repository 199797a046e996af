"""Files of sources without references, by the rules of the files of pairs."""

import json
from pathlib import Path

import pytest

from textgen_env.tasks.task import DataError, Limits, Pair
from textgen_env.tasks.text_files import TextFilesConfig, text_files
from textgen_env.tokenizers.subword import Tokenizer

BYTES = Tokenizer.train([], vocab_size=259)
TEXTS = ["eins", "zwei drei", "vier"]


@pytest.fixture
def read(tmp_path):
    """name, content, options -> the task of one source file and a file for each other split."""
    (tmp_path / "held_out.tsv").write_text("held\tout\n")
    (tmp_path / "train.tsv").write_text("one\tun\n")

    def read_file(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        files = {"train": tmp_path / "train.tsv"} | options
        held_out = dict.fromkeys(("validation", "test"), tmp_path / "held_out.tsv")
        return text_files(TextFilesConfig(**files, **held_out, sources=(path,)), BYTES)

    return read_file


FILES = {
    "a.txt": "eins\nzwei drei\nvier\n",
    "b.de": b"\xef\xbb\xbfeins\r\n zwei drei\t\r\nvier",
    "c.tsv": "eins\nzwei drei\tdeux trois\nvier\tquatre\tcinq\n",
    "d.jsonl": "\n".join(json.dumps({"source": text, "reference": 7}) for text in TEXTS),
    "e.csv": 'source,more\neins,1\n"zwei drei",2\nvier,3\n',
}


@pytest.mark.parametrize("name", FILES)
def test_the_source_alone_is_read(read, name):
    task = read(name, FILES[name])
    assert task.train == [Pair("one", "un"), *[Pair(text, None) for text in TEXTS]]
    assert task.dropped == {}


def test_sources_may_stand_in_place_of_pairs(read):
    assert read("a.txt", FILES["a.txt"], train=None).train == [Pair(text, None) for text in TEXTS]


def test_the_field_of_the_source_and_the_experts_are_as_in_pairs(read):
    records = [{"t": {"de": "eins"}, "v": "EINS"}, {"t": {"de": "zwei"}, "v": None}]
    options = {"source_field": "t.de", "expert_source_field": "v", "prompt": "<{source}>"}
    task = read("a.jsonl", "\n".join(map(json.dumps, records)), **options)
    assert task.train[1:] == [Pair("<eins>", None, "EINS"), Pair("<zwei>", None)]


def test_what_is_left_out_is_counted(read):
    task = read("a.txt", "eins\n\nheld\nONE\na b c\neins\n", limits=Limits(max_words=2))
    assert task.train[1:] == [Pair("eins", None)]
    assert task.repeated == (Pair("ONE", None),)
    assert task.dropped == {
        "empty": 1,
        "over 2 words": 1,
        "sources of validation or test": 1,
        "sources given twice": 1,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "sources must hold at least one source, got none in .*a.txt"),
        ("a.txt", b"eins\nzw\xe9i\n", "a.txt, line 2: a line must be UTF-8, got the byte 0xe9"),
        ("a.jsonl", '{"source": 1}', 'a.jsonl, line 1: the field "source" must be a string, got 1'),
        ("a.jsonl", "{}", 'a.jsonl, line 1 must have the field "source"'),
        ("a.csv", "text\nx\n", 'a.csv, line 2 must have the field "source"'),
    ],
)
def test_bad_files_are_named(read, name, content, message):
    with pytest.raises(DataError, match=message):
        read(name, content)


@pytest.mark.parametrize("given", [{}, {"sources": ("a.txt",)}])
def test_there_is_something_to_learn_from_and_something_to_score_on(given):
    with pytest.raises(ValueError, match="train must be given unless sources, validation and test"):
        TextFilesConfig(None, **given)


def test_names_of_sources_become_paths():
    config = TextFilesConfig("a.tsv", sources=["b.txt", "c.txt"])
    assert config.sources == (Path("b.txt"), Path("c.txt"))
