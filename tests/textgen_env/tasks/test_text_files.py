import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env.tasks.task import DataError, Limits, Pair, hashed_split
from textgen_env.tasks.text_files import TextFilesConfig, text_files
from textgen_env.tokenizers.subword import Tokenizer

BYTES = Tokenizer.train([], vocab_size=259)
FORMATS = ("tsv", "jsonl", "aligned")
FIELDS = "source", "reference"
PAIRS = [Pair(f"source {n}", f"reference {n}") for n in range(300)]


def write(folder, kind, pairs, name="pairs", *, end="\n", finish=""):
    """Write `pairs` in a format, `finish` after the last; what the configuration takes."""
    pairs = [pair[:2] for pair in pairs]
    if kind == "aligned":
        paths = folder / f"{name}.de", folder / f"{name}.en"
        for path, side in zip(paths, zip(*pairs, strict=True), strict=True):
            path.write_bytes((end.join(side) + finish).encode())
        return paths
    path = folder / f"{name}.{kind}"
    lines = [
        "\t".join(pair)
        if kind == "tsv"
        else json.dumps(dict(zip(FIELDS, pair, strict=True)), ensure_ascii=False)
        for pair in pairs
    ]
    path.write_bytes((end.join(lines) + finish).encode())
    return path


def held_out(folder):
    """Return validation and test files, for tests that look at the training file."""
    (folder / "held_out.tsv").write_text("held\tout\n")
    return {"validation": folder / "held_out.tsv", "test": folder / "held_out.tsv"}


def read(folder, train, **options):
    return text_files(TextFilesConfig(train, **held_out(folder), **options), BYTES)


def read_bytes(folder, name, content):
    (folder / name).write_bytes(content)
    return read(folder, folder / name)


@pytest.mark.parametrize("kind", FORMATS)
def test_three_splits_are_read_in_order(tmp_path, kind):
    cuts = {"train": PAIRS[:5], "validation": PAIRS[5:7], "test": PAIRS[7:8]}
    files = {split: write(tmp_path, kind, pairs, split) for split, pairs in cuts.items()}
    task = text_files(TextFilesConfig(**files, name="mine"), BYTES)
    assert (task.train, task.validation, task.test) == tuple(cuts.values())
    assert task.name == "mine"
    assert task.dropped == {}


@pytest.mark.parametrize("kind", FORMATS)
def test_one_file_is_split_by_a_hash_of_the_source(tmp_path, kind):
    task = text_files(TextFilesConfig(write(tmp_path, kind, PAIRS)), BYTES)
    for split, pairs in (
        ("train", task.train),
        ("validation", task.validation),
        ("test", task.test),
    ):
        assert pairs == [pair for pair in PAIRS if hashed_split(pair.source) == split]


def test_the_split_does_not_depend_on_the_unicode_form(tmp_path):
    sides = [f"S\u00e4tze {n} \u00e9" for n in range(300)]
    tasks = []
    for form in ("NFC", "NFD"):
        pairs = [Pair(*[unicodedata.normalize(form, side)] * 2) for side in sides]
        tasks.append(text_files(TextFilesConfig(write(tmp_path, "tsv", pairs)), BYTES))
    composed, decomposed = (
        [[unicodedata.normalize("NFC", pair.source) for pair in pairs] for pairs in splits]
        for splits in ((task.train, task.validation, task.test) for task in tasks)
    )
    assert composed == decomposed
    assert [pair.reference for pair in tasks[0].test] == [p.reference for p in tasks[1].test]


def test_equal_sources_are_in_the_same_split(tmp_path):
    pairs = [Pair(f"{pair.source}{' ' * n}", f"{n}") for pair in PAIRS for n in range(2)]
    task = text_files(TextFilesConfig(write(tmp_path, "tsv", pairs)), BYTES)
    sources = [
        {pair.source for pair in split} for split in (task.train, task.validation, task.test)
    ]
    assert sum(map(len, sources)) == len(set.union(*sources)) == len(PAIRS)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_other_line_separators_are_text(tmp_path, kind, end):
    pairs = [Pair("a\u2028b\u2029c\x85d\x0be\x0cf", "g\x1ch\x1di"), Pair("j\rk", "l")]
    assert read(tmp_path, write(tmp_path, kind, pairs, end=end)).train == pairs


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("finish", ["", "\n", "\r\n"])
def test_mark_and_last_line_end_are_optional(tmp_path, kind, finish):
    files = write(tmp_path, kind, PAIRS[:2], finish=finish)
    for path in files if kind == "aligned" else (files,):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(tmp_path, files).train == PAIRS[:2]


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(
        st.builds(
            Pair,
            *[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"))] * 2,
        ),
        min_size=1,
    ),
    kind=st.sampled_from(FORMATS),
)
def test_every_pair_is_read_or_counted(tmp_path_factory, pairs, kind):
    folder = tmp_path_factory.mktemp("pairs")
    pairs = [Pair("kept", "kept"), *pairs]
    files = write(folder, kind, pairs, finish="\n")
    task = read(folder, files, limits=Limits(10, 9999, None))
    stripped = [Pair(pair.source.strip(), pair.reference.strip()) for pair in pairs]
    assert set(task.train) <= set(stripped)
    assert len(task.train) + sum(task.dropped.values()) == len(pairs)


def test_fields_of_json_lines_have_any_name(tmp_path):
    path = tmp_path / "pairs.JSONL"
    path.write_text('{"id": 1, "en": "two\\nlines", "de": "zwei"}\n{"de": "", "en": "x"}')
    task = read(tmp_path, path, source_field="de", reference_field="en")
    assert task.train == [Pair("zwei", "two\nlines")]
    assert task.dropped == {"empty": 1}


@pytest.mark.parametrize("kind", FORMATS)
def test_pairs_left_out_are_counted(tmp_path, kind):
    pairs = [Pair("a", "b"), Pair("", "b"), Pair(" ", ""), Pair("a b c d", "a"), Pair("a", "b c d")]
    pairs += [Pair("x" * 20, "y"), Pair("end", "end")]
    limits = Limits(max_words=3, max_tokens=10, length_ratio=(0.5, 2.0))
    task = read(tmp_path, write(tmp_path, kind, pairs), limits=limits)
    assert task.train == [pairs[0], pairs[-1]]
    assert task.dropped == {
        "empty": 2,
        "over 3 words": 1,
        "length ratio outside 0.5 to 2.0": 1,
        "over 10 tokens": 1,
    }


def test_blank_lines_are_counted_as_empty_pairs(tmp_path):
    assert read_bytes(tmp_path, "x.tsv", b"\na\tb\n \n\t\n\n").dropped == {"empty": 4}
    assert read_bytes(tmp_path, "x.jsonl", b'\n{"source":"a","reference":"b"}\n\n').dropped == {
        "empty": 2
    }


def test_no_pair_is_left_out_for_its_ratio_unless_asked(tmp_path):
    pairs = [Pair("one two three four five six", "one")]
    assert read(tmp_path, write(tmp_path, "tsv", pairs)).train == pairs


def test_a_tokenizer_is_trained_if_none_is_given(tmp_path):
    config = TextFilesConfig(write(tmp_path, "tsv", PAIRS), vocab_size=280)
    task = text_files(config)
    assert task.tokenizer.vocab_size == 280
    assert len(task.tokenizer.encode(["source"])[0]) < len("source")


BROKEN_LINES = [
    ("x.tsv", b"a\tb\nc\n", r"x\.tsv, line 2: a line must hold 2 fields, .*, got 1$"),
    ("x.tsv", b"a\tb\tc\n", r"x\.tsv, line 1: a line must hold 2 fields, .*, got 3$"),
    ("x.tsv", b"a\tb\nc\t\xe4\n", r"x\.tsv, line 2: .* UTF-8, got the byte 0xe4 at position 3"),
    (
        "x.tsv",
        "a\tb".encode("utf-16"),
        r"x\.tsv, line 1: .* UTF-8, got the byte 0xff at position 1",
    ),
    ("x.jsonl", b"\n{'a'}", r"x\.jsonl, line 2: .* a JSON object, got invalid JSON: Expecting"),
    ("x.jsonl", b"[" * 100_000, r"x\.jsonl, line 1: .* a JSON object, got invalid JSON"),
    ("x.jsonl", b'["a", "b"]', r'x\.jsonl, line 1: .* a JSON object, got \["a", "b"\]'),
    (
        "x.jsonl",
        b'{"source": "a", "text": "b"}',
        r'have the field "reference", got \["source", "te',
    ),
    ("x.jsonl", b'{"source": "a", "reference": 3}', r'field "reference" must be a string, got 3$'),
    ("x.jsonl", b'{"source": null, "reference": ""}', r'"source" must be a string, got null$'),
    ("x.jsonl", b'{"source": "\\ud83d", "reference": "b"}', r"line 1: .* got half a surrogate"),
    ("x.jsonl", b'{"source": "a", "reference": ["%s"]}' % (b"b" * 99), r'got \["b{55}\.\.\.$'),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN_LINES)
def test_broken_lines(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_bytes(tmp_path, name, content)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"], ids=["nothing", "mark only"])
def test_empty_files(tmp_path, content):
    with pytest.raises(DataError, match=r"train must hold at least one pair, got none in .*x\.tsv"):
        read_bytes(tmp_path, "x.tsv", content)
    with pytest.raises(DataError, match=r"got none in .*x\.tsv and .*x\.tsv"):
        read(tmp_path, (tmp_path / "x.tsv",) * 2)


def test_files_without_a_pair_to_keep(tmp_path):
    with pytest.raises(DataError, match=r"the train split .*'empty': 3"):
        read_bytes(tmp_path, "x.tsv", b"\n\n\t\n")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"x\.tsv must be a readable file, got: No such file"):
        read(tmp_path, tmp_path / "x.tsv")
    with pytest.raises(DataError, match=r"must be a readable file, got: Is a directory"):
        read(tmp_path, (tmp_path, tmp_path))


def test_aligned_files_of_different_length(tmp_path):
    source, reference = write(tmp_path, "aligned", PAIRS[:3])
    reference.write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"as many lines, got 3 in .*\.de and 2 in .*\.en"):
        read(tmp_path, (source, reference))


def test_broken_aligned_file(tmp_path):
    source, reference = write(tmp_path, "aligned", PAIRS[:3])
    reference.write_bytes(b"one\ntwo\n\xff\n")
    with pytest.raises(DataError, match=r"pairs\.en, line 3: .* UTF-8, got the byte 0xff"):
        read(tmp_path, (source, reference))


def test_unknown_format(tmp_path):
    with pytest.raises(
        DataError, match=r"train must be a file that ends in \.tsv, \.jsonl, \.csv or \.p"
    ):
        read_bytes(tmp_path, "x.xml", b"a,b\n")


def test_held_out_files_are_checked_as_well(tmp_path):
    train = write(tmp_path, "tsv", PAIRS)
    with pytest.raises(DataError, match=r"test must be a file that ends in .*, got .*x\.xml"):
        text_files(TextFilesConfig(train, validation=train, test=tmp_path / "x.xml"), BYTES)


def test_validation_comes_with_test(tmp_path):
    with pytest.raises(ValueError, match="must be given both or neither, got validation None and"):
        TextFilesConfig(tmp_path / "x.tsv", test=tmp_path / "y.tsv")


def test_strings_are_paths(tmp_path):
    files = write(tmp_path, "aligned", PAIRS)
    paths = TextFilesConfig(files, tmp_path / "x.tsv", files)
    assert TextFilesConfig(tuple(map(str, files)), str(tmp_path / "x.tsv"), files) == paths
    assert len(text_files(TextFilesConfig(tuple(map(str, files))), BYTES).train) > 200


def test_three_aligned_files(tmp_path):
    with pytest.raises(ValueError, match="must be one of pairs or two aligned ones, got 3"):
        TextFilesConfig((tmp_path / "x",) * 3)


def test_too_few_pairs_to_split(tmp_path):
    with pytest.raises(
        DataError, match=r"enough pairs .*, got 2, .* give files for validation and"
    ):
        text_files(TextFilesConfig(write(tmp_path, "tsv", PAIRS[:2])), BYTES)


def test_reading_changes_no_file(tmp_path):
    path = write(tmp_path, "tsv", PAIRS)
    before = path.read_bytes()
    text_files(TextFilesConfig(path), BYTES)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
