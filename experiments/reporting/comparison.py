"""Two systems side by side: test pairs that one of them writes better, and the largest differences.

Pairs are compared by chrF, which tells short texts apart better than BLEU does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from textgen_agents.evaluation.quality import chrf
from textgen_experiments.reporting.schema import Json
from textgen_experiments.reporting.written_texts import WrittenTexts

NUM_LARGEST = 4  # differences that are shown in each direction


@dataclass(frozen=True)
class Comparison:
    """Comparison of two systems by the scores of their texts.

    Attributes:
        wins: number of pairs at which the first system has the higher score.
        losses: number of pairs at which the second one has.
        largest_wins: indices of the wins with the largest differences, in falling order.
        largest_losses: the same of the losses.
    """

    wins: int
    losses: int
    largest_wins: list[int]
    largest_losses: list[int]


def pair_scores(texts: WrittenTexts) -> dict[str, list[float]]:
    """Compute chrF of each text of each system, in [0, 100], with one decimal."""
    once = lru_cache(maxsize=None)(lambda text, reference: round(chrf([text], [reference]), 1))
    return {
        system: list(map(once, written, texts.references))
        for system, written in texts.systems.items()
    }


def compare_scores(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two systems, given a score for each pair; equal scores are neither win nor loss."""
    gains = [ours - theirs for ours, theirs in zip(first, second, strict=True)]
    falling = sorted(range(len(gains)), key=lambda index: (-gains[index], index))
    wins = [index for index in falling if gains[index] > 0]
    losses = [index for index in reversed(falling) if gains[index] < 0]
    return Comparison(len(wins), len(losses), wins[:NUM_LARGEST], losses[:NUM_LARGEST])


def comparison_data(texts: WrittenTexts) -> Json:
    """Return what the page's program shows of every two systems.

    Returns:
        "systems": their names; "pairs": the number of test pairs; "comparisons": wins, losses and
        the indices of the largest differences for each two systems, in the order of the names;
        "texts": source, reference and each system's text and score by the index of a pair.
    """
    scores = pair_scores(texts)
    compared = [compare_scores(scores[one], scores[two]) for one, two in combinations(scores, 2)]
    shown = {i for each in compared for i in (*each.largest_wins, *each.largest_losses)}
    return {
        "systems": list(scores),
        "pairs": len(texts.references),
        "comparisons": [
            [each.wins, each.losses, each.largest_wins, each.largest_losses] for each in compared
        ],
        "texts": {index: _texts_of(texts, scores, index) for index in sorted(shown)},
    }


def _texts_of(texts: WrittenTexts, scores: Mapping[str, Sequence[float]], index: int) -> Json:
    return {
        "source": texts.sources[index],
        "reference": texts.references[index],
        "written": [
            [texts.systems[system][index], values[index]] for system, values in scores.items()
        ],
    }
