"""Most of these run on a tiny package with the same layout; the last ones on the real one."""

import re
import sqlite3
from contextlib import closing
from importlib.util import find_spec

import pytest

from tests.support.data_packages import install
from textgen_env.tasks.task import DataError, Pair
from textgen_env.tasks.train_subset import by_kind
from textgen_env.tasks.verses import (
    BIBLE,
    VersesConfig,
    clean_verse,
    split_of,
    verses,
)
from textgen_env.tokenizers.subword import Tokenizer

PLACES = [(book, chapter, verse) for book in (1, 2) for chapter in range(1, 51) for verse in (1, 2)]
BYTES = Tokenizer.train([], vocab_size=259)
needs_package = pytest.mark.skipif(
    find_spec(BIBLE.package) is None, reason=f"{BIBLE.requirement} is not installed"
)


@pytest.fixture
def database(tmp_path, monkeypatch):
    """Path of an installed package's database file, which is not written yet."""
    return install(BIBLE, tmp_path / "some #1 %41 folder?", monkeypatch)


def write(path, rows):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
        connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)


@pytest.fixture
def three_versions(database):
    """Write a database of versions e, s and 3, whose verses tell their version and place."""
    write(
        database,
        [(v, *place, "{} in {}-{}-{}".format(v, *place)) for v in "es3" for place in PLACES],
    )


def chapters(pairs):
    """Return the (book, chapter) that each side of `pairs` tells."""
    return {
        tuple(re.findall(r"\d+", side.split("in")[1])[:2]) for pair in pairs for side in pair[:2]
    }


@pytest.mark.usefixtures("three_versions")
def test_no_chapter_is_in_two_splits_in_any_version():
    task = verses(VersesConfig(source_versions=("e", "s")), BYTES)
    train, validation, test = map(chapters, (task.train, task.validation, task.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train | validation | test) == 100


@pytest.mark.usefixtures("three_versions")
def test_extra_versions_give_sources_of_training_chapters_alone():
    plain = verses(VersesConfig(), BYTES)
    task = verses(VersesConfig(extra_versions=("s",)), BYTES)
    pairs, sources = by_kind(task.train)
    assert (pairs, task.validation, task.test) == (plain.train, plain.validation, plain.test)
    assert [source.source for source in sources] == [f"s{pair.source[1:]}" for pair in pairs]
    assert not chapters([Pair(*[each.source] * 2) for each in sources]) & chapters(task.test)
    assert task.repeated == ()


def test_the_version_of_the_pairs_gives_those_that_are_too_long_for_them(database):
    """Beside the verses of pairs, which are set aside, and those above a limit of their own."""
    lengths = {1: 5, 2: 9, 3: 20}  # words of each verse
    places = [(b, chapter, verse) for b in (1, 2) for chapter in range(1, 51) for verse in lengths]
    text = "{} " * 3 + "word " * 20
    write(
        database,
        [
            (version, *place, " ".join(text.format(*place).split()[: lengths[place[2]]]))
            for version in "e3"
            for place in places
        ],
    )
    limits = {"max_words": 5, "max_train_words": 5, "max_tokens": 999}
    task = verses(VersesConfig(extra_versions=("e",), max_extra_words=9, **limits), BYTES)
    pairs, sources = by_kind(task.train)
    assert {len(each.source.split()) for each in pairs} == {5}
    assert {len(each.source.split()) for each in sources} == {9}
    assert len(sources) == len(pairs) == len(task.repeated)


@pytest.mark.usefixtures("three_versions")
def test_pairs_are_of_the_same_verse():
    task = verses(VersesConfig(source_versions=("e", "s")), BYTES)
    pairs = [*task.train, *task.validation, *task.test]
    assert all(pair.source[1:] == pair.reference[1:] for pair in pairs)
    assert {pair.source[0] for pair in task.train} == {"e", "s"}
    assert {pair.source[0] for pair in (*task.validation, *task.test)} == {"e"}
    assert {pair.reference[0] for pair in pairs} == {"3"}
    assert len(task.train) * 0.5 + len(task.validation) + len(task.test) == len(PLACES)
    assert not task.dropped


@pytest.mark.usefixtures("three_versions")
def test_the_last_task_is_kept_for_an_equal_tokenizer():
    first, again = verses(None, BYTES), verses(VersesConfig(), Tokenizer(BYTES.backend))
    assert again is first
    assert verses(VersesConfig(max_tokens=60), BYTES).max_source_length == 60


@pytest.mark.usefixtures("three_versions")
def test_more_versions_leave_held_out_pairs_alone():
    one, two = (verses(VersesConfig(source_versions=names), BYTES) for names in ("e", ("e", "s")))
    assert (one.validation, one.test) == (two.validation, two.test)


def test_missing_and_empty_verses_are_counted(database):
    rows = [(version, *place, "a verse") for version in "e3" for place in PLACES]
    rows.remove(("3", 1, 1, 1, "a verse"))
    rows[rows.index(("3", 1, 1, 2, "a verse"))] = ("3", 1, 1, 2, "[]")
    write(database, rows)
    task = verses(tokenizer=BYTES)
    assert task.dropped == {"empty": 2}
    assert len(task.train) + len(task.validation) + len(task.test) == len(PLACES) - 2


def test_training_and_held_out_pairs_have_limits_of_their_own(database):
    write(database, [(version, *place, "one two three") for version in "e3" for place in PLACES])
    assert verses(VersesConfig(max_words=3, max_train_words=None), BYTES).dropped == {}
    with pytest.raises(DataError, match=r"the train split .*'over 2 words': "):
        verses(VersesConfig(max_words=3, max_train_words=2), BYTES)


@pytest.mark.usefixtures("three_versions")
def test_unknown_version():
    with pytest.raises(ValueError, match="version must be one of 3, e, s, got 'x'"):
        verses(VersesConfig(source_versions=("e", "x")), BYTES)
    with pytest.raises(ValueError, match="source_versions must name at least one version"):
        VersesConfig(source_versions=())


@pytest.mark.usefixtures("three_versions")
def test_noise_is_in_what_students_read_of_the_same_pairs():
    clean = verses(VersesConfig(source_versions=("e", "s")), BYTES)
    task = verses(VersesConfig(source_versions=("e", "s"), source_noise=0.3), BYTES)
    for split in ("train", "validation", "test"):
        pairs = getattr(task, split)
        assert [Pair(p.expert_source, p.reference) for p in pairs] == getattr(clean, split)
        assert any(pair.source != pair.expert_source for pair in pairs)
    assert task.dropped == clean.dropped


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_noise_is_a_share(share):
    with pytest.raises(ValueError, match=r"source_noise must be in \[0, 1\], got "):
        VersesConfig(source_noise=share)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<pb/>In the <i>beginning</i>", "In the beginning"),
        ("(3:16) Denn [also] hat¶  Gott_*", "Denn also hat Gott"),
        ("„Ja“, »nein« \u2018so\u2019 `da`", "\"Ja\", \"nein\" 'so' 'da'"),
        ("und er sprach: -", "und er sprach:"),
        ("well-known \u2014", "well-known"),
        ("  a\t\nb ", "a b"),
        ("[]", ""),
    ],
)
def test_cleaning(text, cleaned):
    assert clean_verse(text) == cleaned


def test_split_of_a_known_chapter():
    assert split_of(1, 6) == "test"  # sha256 of "1:6" begins with 62325dfc1fc67525, % 100 = 1


@pytest.fixture(scope="module")
def real_task():
    return verses(tokenizer=BYTES, config=VersesConfig(max_words=12, max_train_words=12))


@needs_package
def test_real_text_is_clean(real_task):
    sides = [side for pair in (*real_task.train, *real_task.test) for side in pair[:2]]
    assert len(sides) > 2000
    assert not [side for side in sides if re.search(r"[<>\[\]¶„“”]|^\s|\s$|\s\s", side)]


@needs_package
def test_real_pairs_translate_each_other(real_task):
    assert Pair("Jesus vergoß Tränen.", "And Jesus himself was weeping.") in real_task.train


@needs_package
def test_nothing_is_lost(real_task):
    splits = real_task.train, real_task.validation, real_task.test
    assert sum(map(len, splits)) + sum(real_task.dropped.values()) == 31_102
