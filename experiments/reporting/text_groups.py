"""Charts of quality by groups of equal size: of test pairs by length, and by frequency of words."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from textgen_agents.evaluation.quality import bleu
from textgen_env.tasks.languages import count_words
from textgen_experiments.reporting.charts import Chart, line_chart
from textgen_experiments.reporting.schema import Json
from textgen_experiments.reporting.written_texts import WrittenTexts, words_of

MAX_GROUPS = 5
MIN_IN_GROUP = 5  # pairs or words, on average
TWO_LINES_FROM = 6  # characters of both ends of a range


def cut_points(values: Sequence[float]) -> list[float]:
    """Return the first value of each quantile group but the lowest; equal values stay together.

    Args:
        values: at least one, in any order.
    """
    ordered = sorted(values)
    count = max(1, min(MAX_GROUPS, len(ordered) // MIN_IN_GROUP))
    starts = {ordered[len(ordered) * group // count] for group in range(1, count)}
    return sorted(starts - {ordered[0]})


def group_ranges(values: Sequence[float], cuts: Sequence[float]) -> list[str]:
    """Return the smallest and the largest value of each group, in plotly's markup."""
    groups: list[list[float]] = [[] for _ in range(len(cuts) + 1)]
    for value in values:
        groups[bisect_right(cuts, value)].append(value)
    return [_range_of(min(group), max(group)) for group in groups]


def _range_of(low: float, high: float) -> str:
    """Return a range in words, in two lines if it is long: axes are narrow on phones."""
    begin, end = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in (low, high))
    if begin == end:
        return begin
    return f"{begin}{' ' if len(begin + end) < TWO_LINES_FROM else '<br>'}to {end}"


def by_length(texts: WrittenTexts | None, runs: Sequence[str], side: str) -> Chart:
    """Return a chart of BLEU by the length of a side of the pairs.

    Args:
        texts: what was written; None for no chart.
        runs: names of all runs of the report.
        side: "reference" or "source".
    """
    lengths = []
    if texts:
        sides = texts.references if side == "reference" else texts.sources
        lengths = [count_words(text) for text in sides]
    return _bleu_chart(
        texts, runs, lengths, f"length-{side}", f"BLEU by length of the {side}", "words"
    )


def by_frequency(texts: WrittenTexts | None, runs: Sequence[str]) -> Chart:
    """Return a chart of BLEU by the frequency of the reference's words in training.

    The frequency of a text is the geometric mean of its words' occurrences, each plus one.
    """
    means = [_mean_occurrences(texts, each) for each in texts.references] if texts else []
    return _bleu_chart(
        texts,
        runs,
        means,
        "frequency-pairs",
        "BLEU by frequency of the reference's words",
        "mean occurrences of its words in training",
    )


def _mean_occurrences(texts: WrittenTexts, reference: str) -> float:
    counts = [math.log1p(texts.occurrences.get(word, 0)) for word in words_of(reference)]
    return math.expm1(fmean(counts)) if counts else 0.0


def _bleu_chart(
    texts: WrittenTexts | None,
    runs: Sequence[str],
    values: Sequence[float],
    name: str,
    title: str,
    unit: str,
) -> Chart:
    """Return a chart of the BLEU of each system in groups of pairs by `values`."""
    scores, ranges = {}, []
    if texts:
        cuts = cut_points(values)
        ranges = group_ranges(values, cuts)
        members: list[list[int]] = [[] for _ in ranges]
        for index, value in enumerate(values):
            members[bisect_right(cuts, value)].append(index)
        scores = {
            system: [
                bleu(
                    [written[i] for i in group],
                    [texts.references[i] for i in group],
                    texts.language,
                )
                for group in members
            ]
            for system, written in texts.systems.items()
        }
    return _group_chart(name, title, scores, runs, x=_axis_of(ranges, unit), y="BLEU")


def word_f1_by_frequency(texts: WrittenTexts | None, runs: Sequence[str]) -> Chart:
    """Return a chart of the F1 of words in classes of their occurrences in training."""
    scores, ranges = {}, []
    words = [word for text in texts.references for word in words_of(text)] if texts else []
    if texts and words:
        seen = [texts.occurrences.get(word, 0) for word in words]
        cuts = cut_points(seen)
        ranges = group_ranges(seen, cuts)
        scores = {
            system: word_f1(texts, written, cuts) for system, written in texts.systems.items()
        }
    return _group_chart(
        "frequency-words",
        "F1 of words by their frequency",
        scores,
        runs,
        x=_axis_of(ranges, "occurrences of the word in training"),
        y="F1 of words, %",
    )


def word_f1(
    texts: WrittenTexts, written: Sequence[str], cuts: Sequence[float]
) -> list[float | None]:
    """Compute the F1 of the words of each class, in percent.

    A word is found if its pair's reference holds it, at most as often as it occurs there.

    Args:
        texts: the references and the occurrences of words in training.
        written: a text for each reference.
        cuts: occurrences at which the classes but the lowest begin.

    Returns:
        One number for each class; None where neither texts nor references have such words.

    Source: Neubig et al. 2019, "compare-mt", arXiv:1903.07926.
    """
    matched, counted = Counter[int](), Counter[int]()
    for text, reference in zip(written, texts.references, strict=True):
        ours, theirs = Counter(words_of(text)), Counter(words_of(reference))
        for word in ours | theirs:
            group = bisect_right(cuts, texts.occurrences.get(word, 0))
            matched[group] += 2 * min(ours[word], theirs[word])
            counted[group] += ours[word] + theirs[word]
    groups = range(len(cuts) + 1)
    return [100 * matched[g] / counted[g] if counted[g] else None for g in groups]


def _axis_of(ranges: Sequence[str], unit: str) -> Json:
    """Return an axis with a tick for each group; ranges that read alike stay apart."""
    return {
        "title": {"text": unit},
        "tickvals": [*range(len(ranges))],
        "ticktext": [*ranges],
        "range": [-0.25, len(ranges) - 0.75],
    }


def _group_chart(
    name: str,
    title: str,
    scores: Mapping[str, Sequence[float | None]],
    runs: Sequence[str],
    *,
    x: Json,
    y: str,
) -> Chart:
    """Return a chart with a line for each system; a run without texts is named as missing."""
    models = [*(system for system in scores if system not in runs), *runs]
    lines = {model: (x["tickvals"], scores[model]) if model in scores else None for model in models}
    return line_chart(name, title, lines, x=x, y={"title": {"text": y}, "rangemode": "tozero"})
