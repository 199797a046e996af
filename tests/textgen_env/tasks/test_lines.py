import io
import json

import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st

from textgen_env.tasks import lines as reader
from textgen_env.tasks.lines import file_lines, in_one_line, lines_with_ends, read_lines
from textgen_env.tasks.task import DataError
from textgen_env.tasks.text_files import TextFilesConfig, text_files
from textgen_env.tokenizers.subword import Tokenizer

BYTES = Tokenizer.train([], vocab_size=259)
MARK = "\ufeff".encode()
TEXTS = {
    "tsv": b"a\tb\nc\td\n",
    "jsonl": b'{"source": "a", "reference": "b"}\n{"source": "c", "reference": "d"}\n',
    "csv": b'source,reference\na,b\n"c","d"\n',
    "txt": b"a\nb\n",
}


def texts(content):
    return [text for _, text in read_lines(io.BytesIO(content), "x")]


def read_pairs(folder, kind, content):
    """Return all pairs of a file with this content, and how many were left out."""
    (folder / "held_out.tsv").write_text("held\tout\n")
    path = folder / f"x.{kind}"
    path.write_bytes(content)
    files = (path, path) if kind == "txt" else path
    held_out = folder / "held_out.tsv"
    task = text_files(TextFilesConfig(files, validation=held_out, test=held_out), BYTES)
    return task.train, sum(task.dropped.values())


@settings(deadline=None, max_examples=300)
@seed(0)
@given(st.binary(max_size=60) | st.text("a\u00e4\r\n\ufeff\u2028").map(str.encode))
@example(MARK)
@example(MARK + MARK + b"\n")
@example(b"a\r\r\nb\r")
def test_any_bytes_are_lines_or_one_error_with_the_number(content):
    bare = content.removeprefix(MARK)
    ended = bare.split(b"\n")
    try:
        expected = [line.decode().removesuffix("\r") for line in ended]
    except UnicodeDecodeError:
        with pytest.raises(DataError, match=r"^x, line \d+: a line must be UTF-8, got the byte 0x"):
            texts(content)
        return
    assert texts(content) == (expected if ended[-1] else expected[:-1])
    with_ends = [text for _, text in lines_with_ends(io.BytesIO(content), "x")]
    assert "".join(with_ends).encode() == bare


@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_of_file_follows_the_same_rules(tmp_path, kind, monkeypatch):
    plain = read_pairs(tmp_path, kind, TEXTS[kind])
    assert plain[0]
    assert read_pairs(tmp_path, kind, MARK + TEXTS[kind].replace(b"\n", b"\r\n")) == plain
    number = TEXTS[kind].count(b"\n") + 1
    with pytest.raises(DataError, match=rf"x\.{kind}, line {number}: .* UTF-8, got the byte 0xe4"):
        read_pairs(tmp_path, kind, TEXTS[kind] + b"\xe4\n")
    with pytest.raises(DataError, match=rf"x\.{kind}, line 1: .* UTF-8, got the byte 0xff"):
        read_pairs(tmp_path, kind, TEXTS[kind].decode().encode("utf-16"))
    monkeypatch.setattr(reader, "LONGEST_LINE", 40)
    with pytest.raises(DataError, match=rf"x\.{kind}, line {number}: .* at most 40 bytes, got mor"):
        read_pairs(tmp_path, kind, TEXTS[kind] + b"x" * 41)


def test_a_broken_parquet_file_is_one_error_and_no_line_of_the_log(tmp_path, caplog, capfd):
    pytest.importorskip("datasets")
    with pytest.raises(
        DataError, match=r"(?s)x\.parquet must be readable, got .*: give a Parquet file"
    ):
        read_pairs(tmp_path, "parquet", b"PAR1" + bytes(40) + b"PAR1")
    assert caplog.text == capfd.readouterr().err == ""


def test_a_long_cell_of_csv_is_read(tmp_path):
    ((pair,), dropped) = read_pairs(
        tmp_path, "csv", b"source,reference\n%s,b\nc,d" % (b"a" * 200_000)
    )
    assert (pair, dropped) == (("c", "d", None), 1)


def test_a_device_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(reader, "LONGEST_LINE", 1000)
    with pytest.raises(DataError, match="/dev/zero, line 1: a line must have at most 1,000 bytes"):
        list(file_lines(reader.Path("/dev/zero")))


@settings(deadline=None, max_examples=150)
@seed(0)
@given(kind=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_a_mutated_file_is_read_or_is_one_error(tmp_path_factory, kind, data):
    content = bytearray(TEXTS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        stop = place + data.draw(st.integers(0, 3))
        content[place:stop] = data.draw(
            st.binary(max_size=4)
            | st.sampled_from([b'"', b"\r", b"\\ud800", b"\t", b"[" * 9999, b"9" * 5000, b"\0"])
        )
    folder = tmp_path_factory.mktemp("mutated")
    try:
        pairs, _ = read_pairs(folder, kind, bytes(content))
    except DataError:
        return
    assert all(text.encode() == text.strip().encode() for pair in pairs for text in pair[:2])


@given(st.text("ab \r\n\u2028"))
def test_a_text_is_written_in_one_line(text):
    assert not {"\r", "\n"} & set(in_one_line(text))
    assert in_one_line(text).split() == text.split() or "\u2028" in text


def test_json_lines_spell_texts_with_line_ends(tmp_path):
    record = {"source": "a", "reference": "one\r\n\r\ntwo"}
    (pair,), _ = read_pairs(tmp_path, "jsonl", json.dumps(record).encode())
    assert pair.reference == record["reference"]
    assert in_one_line(pair.reference) == "one two"
