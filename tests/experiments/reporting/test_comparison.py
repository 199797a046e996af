"""Two systems side by side: wins, losses and the largest differences."""

from itertools import combinations

import pytest

from tests.support.written import written
from textgen_agents.evaluation.quality import chrf
from textgen_experiments.reporting.comparison import (
    NUM_LARGEST,
    compare_scores,
    comparison_data,
    pair_scores,
)


def test_wins_and_losses_by_hand():
    compared = compare_scores([5.0, 1.0, 3.0, 9.0, 2.0], [4.0, 1.0, 8.0, 2.0, 3.0])
    assert (compared.wins, compared.losses) == (2, 2)
    assert compared.largest_wins == [3, 0]
    assert compared.largest_losses == [2, 4]


def test_two_systems_alike_have_no_difference():
    compared = compare_scores([1.0, 2.0], [1.0, 2.0])
    assert (compared.wins, compared.losses) == (0, 0)
    assert compared.largest_wins == compared.largest_losses == []


def test_the_other_way_round_wins_are_losses():
    one, other = [float(7 * i % 13) for i in range(40)], [float(5 * i % 11) for i in range(40)]
    there, back = compare_scores(one, other), compare_scores(other, one)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert len(there.largest_wins) == NUM_LARGEST
    gains = [ours - theirs for ours, theirs in zip(one, other, strict=True)]
    assert sorted(gains)[-NUM_LARGEST:] == sorted(gains[i] for i in there.largest_wins)
    assert sorted(gains)[:NUM_LARGEST] == sorted(gains[i] for i in there.largest_losses)


def test_scores_are_chrf_of_each_text():
    texts = written(["one two", "three"], mle=["one", "three"])
    assert pair_scores(texts) == {"mle": [pytest.approx(chrf(["one"], ["one two"]), abs=0.05), 100]}


def test_every_two_systems_are_compared_and_their_texts_are_at_hand():
    references = [f"the {i} words of a text" for i in range(9)]
    systems = {
        "a": references,
        "b": [text[i:] for i, text in enumerate(references)],
        "c": ["", *references[1:]],
    }
    data = comparison_data(written(references, **systems))
    assert data["systems"] == ["a", "b", "c"]
    assert data["pairs"] == 9
    pairs = list(combinations(range(3), 2))
    for (one, other), (wins, losses, best, worst) in zip(pairs, data["comparisons"], strict=True):
        assert len(best) == min(wins, NUM_LARGEST)
        assert len(worst) == min(losses, NUM_LARGEST)
        for index in best:
            shown = data["texts"][index]["written"]
            assert shown[one][1] > shown[other][1]
            assert shown[one][0] == systems["abc"[one]][index]
    assert [each[:2] for each in data["comparisons"]] == [[8, 0], [1, 0], [1, 8]]
