"""Data sets laid out as on the hub, and files in named columns; the hub itself is not reached."""

import json
import sys
import time

import pytest

datasets = pytest.importorskip("datasets")

from textgen_env.tasks.hub import HubConfig, cut, hub  # noqa: E402
from textgen_env.tasks.task import DataError, Limits, Pair  # noqa: E402
from textgen_env.tasks.text_files import TextFilesConfig, text_files  # noqa: E402
from textgen_env.tokenizers.subword import Tokenizer  # noqa: E402

BYTES = Tokenizer.train([], vocab_size=259)
PAIRS = [Pair(f"Quelle {n}, Wort", f'Source {n} "word"') for n in range(40)]
CUTS = {"train": PAIRS[:30], "validation": PAIRS[30:36], "test": PAIRS[36:]}
COLUMNS = {"source": "translation.de", "reference": "translation.en"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def as_translation(pair):
    return {"translation": {"de": pair.source, "en": pair.reference}}


def write(folder, split, records, kind="parquet"):
    """Write a file of `folder` named for its split; return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif kind == "csv":
        datasets.Dataset.from_list(records).to_csv(path)
    else:
        datasets.Dataset.from_list(records).to_parquet(path)
    return path


@pytest.fixture(params=["parquet", "jsonl"])
def folder(request, tmp_path):
    for split, pairs in CUTS.items():
        write(tmp_path / "data", split, map_list(as_translation, pairs), request.param)
    return tmp_path / "data"


def map_list(function, items):
    return [function(item) for item in items]


@pytest.mark.parametrize("train", ["train", None])
def test_splits_of_sources_have_no_references(tmp_path, train):
    more = [Pair(f"Mehr {n}", "unread") for n in range(9)]
    for split, each in {**CUTS, "more": more}.items():
        write(tmp_path / "data", f"{split}-00000-of-00001", map_list(as_translation, each))
    options = {"sources": ("more", "test"), "max_train_sources": 5, "train": train}
    task = hub(HubConfig(str(tmp_path), **COLUMNS, **options), BYTES)
    pairs = [] if train is None else CUTS["train"]
    assert task.train == [*pairs, *[Pair(f"Mehr {n}", None) for n in range(5)]]
    assert task.dropped == {"sources of validation or test": 4}


@pytest.mark.parametrize("streaming", [False, True])
def test_nested_columns_of_every_split_are_read_in_order(folder, streaming):
    task = hub(HubConfig(str(folder), **COLUMNS, streaming=streaming, name="mine"), BYTES)
    assert {"train": task.train, "validation": task.validation, "test": task.test} == CUTS
    assert (task.name, task.dropped) == ("mine", {})


@pytest.mark.parametrize("streaming", [False, True])
def test_training_pairs_are_the_first_ones(folder, streaming):
    config = HubConfig(str(folder), **COLUMNS, streaming=streaming, max_train_pairs=7)
    task = hub(config, BYTES)
    assert task.train == PAIRS[:7]
    assert task.test == CUTS["test"]


def test_a_streamed_split_is_read_no_further_than_it_must(tmp_path):
    broken = [as_translation(pair) for pair in PAIRS[:5]] + [{"translation": {"de": "x"}}]
    for split in CUTS:
        write(tmp_path / "data", split, broken[:5] if split != "train" else broken, "jsonl")
    config = HubConfig(str(tmp_path / "data"), **COLUMNS, streaming=True)
    assert hub(HubConfig(config.path, **COLUMNS, streaming=True, max_train_pairs=5), BYTES).train
    with pytest.raises(DataError, match='row 6, translation must have the field "en", got'):
        hub(config, BYTES)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_files_of_ones_own_have_named_columns(tmp_path, kind):
    records = [
        {"de": p.source, "en": p.reference, "expert_source": f"clean {p.source}"} for p in PAIRS
    ]
    path = write(tmp_path, "pairs", records, kind)
    held = write(tmp_path, "held", records[:2], kind)
    named = {"source_field": "de", "reference_field": "en"}
    task = text_files(TextFilesConfig(path, held, held, **named), BYTES)
    assert task.train == [Pair(p.source, p.reference, f"clean {p.source}") for p in PAIRS]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_what_the_expert_reads_may_be_named_or_missing(tmp_path, kind):
    records = [
        {"source": "a", "reference": "b", "expert_source": None, "other": {"view": "one"}},
        {"source": "c", "reference": "d", "expert_source": "two", "other": {"view": None}},
    ]
    path = write(tmp_path, "pairs", records, kind)
    files = path, path, path
    assert text_files(TextFilesConfig(*files), BYTES).train == [
        Pair("a", "b"),
        Pair("c", "d", "two"),
    ]
    other = TextFilesConfig(*files, expert_source_field="other.view")
    assert text_files(other, BYTES).train == [Pair("a", "b", "one"), Pair("c", "d")]
    with pytest.raises(DataError, match='must have the field "view", got'):
        text_files(TextFilesConfig(*files, expert_source_field="view"), BYTES)


def test_a_blank_view_of_the_experts_is_an_empty_pair(tmp_path):
    records = [{"source": "a", "reference": "b", "expert_source": text} for text in (" ", "c")]
    path = write(tmp_path, "pairs", records, "jsonl")
    assert text_files(TextFilesConfig(path, path, path), BYTES).dropped == {"empty": 3}


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_prompts_are_put_around_sources_after_the_split(tmp_path, kind):
    path, pairs = tmp_path / f"pairs.{kind}", [Pair(f"one {n}", f"two {n}") for n in range(200)]
    if kind == "tsv":
        path.write_text("\n".join("\t".join(pair[:2]) for pair in pairs))
    else:
        write(tmp_path, "pairs", [pair._asdict() for pair in pairs], kind)
    plain = text_files(TextFilesConfig(path), BYTES)
    task = text_files(TextFilesConfig(path, prompt="Say: {source}\n\nAnswer:"), BYTES)
    for before, after in zip(plain.test, task.test, strict=True):
        assert after == before._replace(source=f"Say: {before.source}\n\nAnswer:")


def test_texts_are_lower_cased_and_put_into_prompts(folder):
    config = HubConfig(str(folder), **COLUMNS, lower_case=True, prompt="DE {source} EN")
    pair = hub(config, BYTES).test[0]
    assert pair == Pair("DE quelle 36, wort EN", 'source 36 "word"')


def test_long_sources_are_cut_at_a_word_and_long_references_left_out(tmp_path):
    records = [{"source": "one two three four", "reference": "r" * n} for n in (3, 30)]
    for split in CUTS:
        write(tmp_path / "data", split, records)
    config = HubConfig(
        str(tmp_path / "data"), cut_source=14, limits=Limits(max_tokens=8, length_ratio=None)
    )
    task = hub(config, BYTES)
    assert task.train == [Pair("one two", "rrr")]  # a byte each, a space before, and the end token
    assert (task.max_source_length, task.max_target_length) == (14, 8)
    assert task.dropped == {"over 14 source or 8 target tokens": 3}
    prompted = HubConfig(config.path, cut_source=14, limits=config.limits, prompt="to {source}")
    assert hub(prompted, BYTES).train == [Pair("to one", "rrr")]


def test_what_is_cut_fits_and_nothing_else_is_cut():
    texts = [" ".join("x" * (1 + n * k % 7) for k in range(n)) for n in range(30)] + ["y" * 99]
    for limit in (1, 9, 20):
        for text, short in zip(texts, cut(texts, BYTES, limit), strict=True):
            tokens = len(BYTES.encode([short])[0])
            assert text == short or (
                text.startswith(short) and tokens < len(BYTES.encode([text])[0])
            )
            assert tokens <= limit or " " not in short
            assert len(BYTES.encode([text])[0]) > limit or text == short


def test_a_text_without_spaces_is_cut_at_a_character():
    (short,) = cut(["八六零一 二三"], BYTES, 7)
    assert short == "八六"


def test_a_tokenizer_is_trained_before_sources_are_cut(folder):
    task = hub(HubConfig(str(folder), **COLUMNS, cut_source=6, vocab_size=300))
    assert 259 < task.tokenizer.vocab_size <= 300
    assert max(map(len, task.tokenizer.encode([p.source for p in task.train]))) < 6


BAD = [
    ({"validation": "dev"}, r"data, dev must be readable, got ValueError: (Bad|Unknown) split"),
    ({"configuration": "fr-en"}, "BuilderConfig 'fr-en' not found"),
    (
        {"source": "translation.fr"},
        r'row 1, translation must have the field "fr", got \["de", "en"\]',
    ),
    ({"source": "text"}, r'row 1 must have the field "text", got \["translation"\]: set the names'),
    ({"source": "translation"}, 'the field "translation" must be a string, got {"de"'),
    ({"reference": "translation.de.x"}, 'must have the field "translation.de.x"|field "de.x"'),
    ({"path": "nowhere/at/all"}, "nowhere/at/all, train must be readable, got FileNotFoundError"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_settings_are_one_error(tmp_path, settings, message, streaming):
    for split, pairs in CUTS.items():
        write(tmp_path / "data", split, map_list(as_translation, pairs))
    config = {"path": str(tmp_path / "data"), **COLUMNS, **settings}
    with pytest.raises(DataError, match=message):
        hub(HubConfig(**config, streaming=streaming), BYTES)


def test_an_empty_split_is_named(tmp_path):
    for split, pairs in CUTS.items():
        write(tmp_path / "data", split, map_list(as_translation, pairs))
    nothing = datasets.Dataset.from_dict({"translation": []})
    nothing.to_parquet(tmp_path / "data" / "test.parquet")
    with pytest.raises(DataError, match="test"):
        hub(HubConfig(str(tmp_path / "data"), **COLUMNS, streaming=True), BYTES)


def test_numbers_and_nothing_are_no_texts(tmp_path):
    for value, shown in ((3, "3"), (None, "null"), (["x"], r'\["x"\]')):
        path = write(tmp_path, "pairs", [{"source": value, "reference": "b"}])
        with pytest.raises(
            DataError, match=f'row 1: the field "source" must be a string, got {shown}'
        ):
            text_files(TextFilesConfig(path, path, path), BYTES)


def test_an_unreadable_parquet_file_is_one_error(tmp_path):
    whole = write(tmp_path, "pairs", [p._asdict() for p in PAIRS])
    for content in (b"", whole.read_bytes()[:300], b"PAR1 nothing PAR1"):
        whole.write_bytes(content)
        with pytest.raises(DataError, match=r"pairs\.parquet must be readable, got .*: give a"):
            text_files(TextFilesConfig(whole, whole, whole), BYTES)
    with pytest.raises(DataError, match=r"no\.parquet must be readable, got FileNotFoundError"):
        text_files(TextFilesConfig(tmp_path / "no.parquet"), BYTES)


def read_csv(tmp_path, content):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    held = tmp_path / "held.csv"
    held.write_text("source,reference\na,b\n")
    return text_files(TextFilesConfig(path, held, held), BYTES)


def test_cells_of_csv_are_texts_whatever_they_look_like(tmp_path):
    content = '\ufeffsource,reference\r\n1,NA\n\n"a, ""b""\nc",null\n,x\n'.encode()
    task = read_csv(tmp_path, content)
    assert task.train == [Pair("1", "NA"), Pair('a, "b"\nc', "null")]
    assert task.dropped == {"empty": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"source,reference\na,b,c\n", r"x\.csv, line 2 must have 2 cells, .* got 3: put cells"),
        (b"source,reference\na,b\nc\n", r"x\.csv, line 3 must have 2 cells, .* got 1"),
        (
            b"source,text\na,b\n",
            r'x\.csv, line 2 must have the field "reference", got \["source", ',
        ),
        (b"source,source\na,b\n", r"x\.csv must have a name for each column, got"),
        (b'source,reference\n"a,b\n', r"x\.csv, line 2: a row must be CSV, got: unexpected end"),
        (b"source,reference\n\xe4,b\n", r"x\.csv, line 2: .* UTF-8, got the byte 0xe4"),
        (b"", r"train must hold at least one pair, got none in .*x\.csv"),
        (b"source,reference\n", r"train must hold at least one pair, got none in .*x\.csv"),
    ],
)
def test_broken_csv_is_one_error(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path, content)


def test_a_missing_csv_file(tmp_path):
    with pytest.raises(DataError, match=r"no\.csv must be a readable file, got: No such file"):
        text_files(TextFilesConfig(tmp_path / "no.csv"), BYTES)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_cannot_be_reached_is_one_error_at_once(streaming, monkeypatch):
    def nobody(*_, **__):
        raise TimeoutError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", nobody)
    start = time.perf_counter()
    with pytest.raises(
        DataError, match=r"nobody/nothing, train must be readable, got ConnectionErr"
    ):
        hub(HubConfig("nobody/nothing", streaming=streaming), BYTES)
    assert time.perf_counter() - start < 5
    assert not datasets.config.HF_HUB_OFFLINE


def test_without_the_extra_one_line_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the extra hf .*pip install 'textgen-env\[hf\]'"):
        hub(HubConfig(str(tmp_path)), BYTES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "no field"}, "prompt must have the field"),
        ({"cut_source": 1}, "cut_source must be at least 2 or None, got 1"),
        ({"train": None}, "train must be given unless sources are, got None"),
        ({"max_train_pairs": 0}, "max_train_pairs must be at least 1 or None, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        HubConfig("x", **settings)
