"""Most of these run on a tiny package with the same layout; the last ones on the real one."""

import json
import re
from importlib.util import find_spec

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from tests.support.data_packages import install
from textgen_env.tasks.descriptions import (
    ARTICLES,
    CopyShare,
    DescriptionsConfig,
    clean_article,
    clean_description,
    copy_share,
    descriptions,
)
from textgen_env.tasks.task import Pair
from textgen_env.testing.checker import check_vector_env
from textgen_env.tokenizers.subword import Tokenizer

BYTES = Tokenizer.train([], vocab_size=259)
TITLES = [f"article {number}" for number in range(100)]
needs_package = pytest.mark.skipif(
    find_spec(ARTICLES.package) is None, reason=f"{ARTICLES.requirement} is not installed"
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Path of an installed package's file, which is not written yet."""
    return install(ARTICLES, tmp_path / "some folder", monkeypatch)


def write(path, articles):
    """Write (title, extract, description) as the package has them."""
    content = {
        title: {"title": title, "extract": extract, "description": description, "topic": "Arts"}
        for title, extract, description in articles
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def hundred(file):
    """Write a package of a hundred articles, each of which tells its title in both texts."""
    write(file, [(title, f"This {title} is long.", f"The {title}") for title in TITLES])


def titles(pairs):
    """Return the title that each side of `pairs` tells."""
    return [{re.findall(r"article \d+", side)[0] for side in pair[:2]} for pair in pairs]


@pytest.mark.usefixtures("hundred")
def test_every_article_is_in_one_split_with_its_own_description():
    task = descriptions(tokenizer=BYTES)
    splits = task.train, task.validation, task.test
    told = [title for pairs in splits for title in titles(pairs)]
    assert all(len(title) == 1 for title in told)
    assert sorted(set.union(*told)) == sorted(TITLES)
    assert len(told) == 100
    assert not task.dropped


def test_the_split_is_by_title_alone(file):
    """sha256 of "Disco" begins with 62571160f3c6acf5, % 100 = 1."""
    write(
        file, [("Disco", "of test", "x"), ("Salt", "of validation", "x"), ("Tyto", "of train", "x")]
    )
    task = descriptions(tokenizer=BYTES)
    for split in ("train", "validation", "test"):
        assert getattr(task, split) == [Pair(f"of {split}", "x")]


def test_what_is_left_out_is_counted(file):
    write(
        file,
        [
            ("Disco", "of test", "x"),
            ("Salt", "of validation", "x"),
            ("Tyto", "of train", "x"),
            ("Durga", "has no description", " "),
            ("Rice", "\u2060", "has no extract"),
            ("Gold", "has too many bytes" * 10, "x"),
            ("Moon", "too long", "a description"),
        ],
    )
    task = descriptions(DescriptionsConfig(max_source_tokens=20, max_target_tokens=8), BYTES)
    assert task.dropped == {"empty": 2, "over 20 source or 8 target tokens": 2}
    assert task.train == [Pair("of train", "x")]
    assert (task.max_source_length, task.max_target_length) == (20, 8)


@pytest.mark.usefixtures("hundred")
def test_the_rest_of_an_article_is_cut_off():
    task = descriptions(DescriptionsConfig(max_source_words=3), BYTES)
    assert all(re.fullmatch(r"This article \d+", pair.source) for pair in task.train)
    with pytest.raises(ValueError, match="max_source_words must be at least 1, got 0"):
        DescriptionsConfig(max_source_words=0)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one\nline,\u00a0c.\u20091308 ", "one line, c. 1308"),
        ("It is denoted \u2060\u2060 or \u2060\u2060; both", "It is denoted or; both"),
        ("Koi , or ( NEE-shee) koi .", "Koi, or (NEE-shee) koi."),
        ("1871 \u2013 1919", "1871 \u2013 1919"),
    ],
)
def test_cleaning(text, cleaned):
    assert clean_article(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("1968 film (1960s)", "1968 film"),
        ("Dutch artist (1898\u20131972)", "Dutch artist"),
        ("Dutch poet (c.\u00a0340\u2013278 BCE)", "Dutch poet"),
        ("1908 film by Escher", "1908 film by Escher"),
        ("Emperor (1908\u20131912) and king (1934)", "emperor (1908\u20131912) and king"),
        ("Process of drawing (art)", "process of drawing (art)"),
        ("D", "d"),
        ("\u2013", "\u2013"),
        ("", ""),
    ],
)
def test_cleaning_of_a_description(text, cleaned):
    assert clean_description(text, "Escher was a Dutch artist, no emperor") == cleaned


def test_copy_share_by_hand():
    pairs = [
        Pair("Durga is a major deity in Hinduism, they say", "Major deity in Hinduism"),
        Pair("Party music is danced to", "Art music"),  # one of two words; "art" is no word of it
        Pair("It is a rock. The band left", "Rock band"),  # both, not side by side
        Pair("Salt", "\u2013"),  # no word at all: nothing to be copied
    ]
    assert copy_share(pairs[:1]) == CopyShare(whole=1.0, words=1.0)
    assert copy_share(pairs[1:2]) == CopyShare(whole=0.0, words=0.5)
    assert copy_share(pairs[:3]) == CopyShare(whole=1 / 3, words=2.5 / 3)
    assert copy_share(pairs[3:]) == CopyShare(whole=0.0, words=0.0)


@pytest.mark.usefixtures("hundred")
@pytest.mark.parametrize("mode", AutoresetMode)
def test_it_makes_environments(mode):
    env = gymnasium.make_vec(
        "TextGen/Descriptions-v0",
        num_envs=3,
        task=descriptions(tokenizer=BYTES),
        autoreset_mode=mode,
    )
    check_vector_env(env)


@pytest.mark.usefixtures("hundred")
def test_it_makes_one_environment():
    env = gymnasium.make("TextGen/Descriptions-v0", config=DescriptionsConfig(), render_mode="ansi")
    env.reset(seed=0)
    assert env.render().startswith("source: This article ")
    check_env(env.unwrapped)


@pytest.fixture(scope="module")
def real_task():
    return descriptions(
        tokenizer=BYTES, config=DescriptionsConfig(max_source_tokens=1000, max_target_tokens=200)
    )


@needs_package
def test_real_text_is_clean(real_task):
    sides = [side for pair in (*real_task.train, *real_task.test) for side in pair[:2]]
    assert len(sides) > 18_000
    assert not [side for side in sides if re.search(r"\u2060|\u00a0|\n|^\s|\s$|\s\s|\s[,.]", side)]


@needs_package
def test_real_descriptions_describe_their_articles(real_task):
    (pair,) = [pair for pair in real_task.train if pair.source.startswith("Tyto is a genus")]
    assert pair.reference == "genus of birds"
    assert len(pair.source.split()) == DescriptionsConfig().max_source_words


@needs_package
def test_nothing_is_lost(real_task):
    splits = real_task.train, real_task.validation, real_task.test
    assert sum(map(len, splits)) + sum(real_task.dropped.values()) == 10_033
    assert real_task.dropped == {"empty": 171}
