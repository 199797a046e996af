"""Groups of equal size: cut points, ranges, and figures by hand."""

import random
from bisect import bisect_right
from collections import Counter
from dataclasses import replace

import pytest

from tests.support.written import written
from textgen_agents.evaluation.quality import bleu
from textgen_experiments.evaluation.results import TEACHER
from textgen_experiments.reporting.text_groups import (
    MAX_GROUPS,
    by_frequency,
    by_length,
    cut_points,
    group_ranges,
    word_f1,
    word_f1_by_frequency,
)

TEXTS = [" ".join(f"w{(7 * i + k) % 23}" for k in range(4 + i % 10)) for i in range(60)]


def test_groups_of_different_values_are_equally_large():
    values = random.Random(0).sample(range(1000), 100)
    cuts = cut_points(values)
    sizes = Counter(bisect_right(cuts, value) for value in values)
    assert sizes == dict.fromkeys(range(MAX_GROUPS), 100 // MAX_GROUPS)


@pytest.mark.parametrize(
    ("values", "cuts"),
    [
        ([3.0], []),
        ([3.0] * 100, []),
        ([1.0] * 90 + [2.0] * 10, []),
        ([1.0] * 70 + [2.0] * 30, [2.0]),
        ([1.0] * 10 + [2.0] * 90, [2.0]),
        ([*range(9)], []),  # too few for two groups
        ([*range(10)], [5]),
    ],
)
def test_equal_values_stay_together_and_no_group_is_empty(values, cuts):
    assert cut_points(values) == cuts
    assert set(range(len(cuts) + 1)) == {bisect_right(cuts, value) for value in values}


def test_ranges_that_read_alike_are_groups_of_their_own():
    texts = written(["a a a a a"] * 10 + ["a a a a b"] * 10, training=["a " * 20, "b " * 21])
    chart = by_frequency(replace(texts, systems={"mle": texts.references}), ["mle"])
    assert chart.traces[0]["x"] == [0, 1]
    assert chart.layout["xaxis"]["ticktext"] == ["20", "20"]


def test_ranges_are_those_of_the_values():
    assert group_ranges([1, 2, 4, 4, 4, 5, 1200, 3456.4], [4, 5]) == [
        "1 to 2",
        "4",
        "5<br>to 3,456",
    ]


@pytest.mark.parametrize("side", ["reference", "source"])
def test_bleu_by_length_is_that_of_each_group(side):
    texts = written(TEXTS, sources=TEXTS[::-1], mle=[f"{text} w1" for text in TEXTS])
    sides = TEXTS if side == "reference" else TEXTS[::-1]
    chart = by_length(texts, ["mle"], side)
    (trace,) = chart.traces
    assert chart.layout["xaxis"]["ticktext"] == [
        "4 to 5",
        "6 to 7",
        "8 to 9",
        "10 to 11",
        "12 to 13",
    ]
    shortest = [i for i, text in enumerate(sides) if len(text.split()) <= 5]
    own, theirs = ([group[i] for i in shortest] for group in (texts.systems["mle"], TEXTS))
    assert trace["y"][0] == bleu(own, theirs)


def test_texts_with_rarer_words_are_in_lower_groups():
    common, rare = ["a a a a"] * 10, ["b b b b"] * 10
    texts = written(common + rare, training=["a a a b"], mle=common + ["c c c c"] * 10)
    chart = by_frequency(texts, ["mle"])
    (trace,) = chart.traces
    assert chart.layout["xaxis"]["ticktext"] == ["1", "3"]
    assert trace["y"] == pytest.approx([0.0, 100.0])


def test_the_teacher_has_its_own_line_and_a_run_without_texts_none():
    texts = written(TEXTS, training=TEXTS, **{TEACHER: TEXTS, "mle": TEXTS[::-1]})
    for chart in (
        by_length(texts, ["mle", "dagger"], "source"),
        by_frequency(texts, ["mle", "dagger"]),
        word_f1_by_frequency(texts, ["mle", "dagger"]),
    ):
        assert [trace["name"] for trace in chart.traces] == [TEACHER, "mle"]
        assert chart.missing == ["dagger"]
        assert chart.traces[0]["y"] == pytest.approx([100.0] * len(chart.traces[0]["x"]))


def test_f1_of_words_by_hand():
    """One word, a, is common; b and c are rare. Words that match count on both sides."""
    texts = written(["a a b", "c"], training=["a a a a", "b c"])
    rare, common = word_f1(texts, ["a b b", "a c"], [2])
    assert rare == pytest.approx(100 * 2 * 2 / (2 + 3))
    assert common == pytest.approx(100 * 2 * 1 / (2 + 2))
    assert word_f1(texts, ["b", "c"], [2, 9])[2] is None


def test_without_texts_the_charts_are_empty():
    for chart in (by_length(None, ["mle"], "source"), word_f1_by_frequency(None, ["mle"])):
        assert chart.traces == []
        assert chart.missing == ["mle"]
