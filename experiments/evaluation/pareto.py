"""Quality against decode speed: the Pareto front, and a picture for TensorBoard."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from textgen_experiments.evaluation.results import ResultRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to import

COLOR, FRONT_COLOR = "#0072B2", "#D55E00"  # of Okabe and Ito, for all kinds of color vision


class Point(NamedTuple):
    """Speed and quality of a model; `error` is half the width of quality's interval, or None."""

    speed: float
    quality: float
    error: float | None = None


def pareto_figure(rows: Sequence[ResultRow]) -> "Figure":
    """Plot BLEU, with its 95 % interval, against tokens per second, and the Pareto front."""
    from matplotlib.figure import Figure  # slow to import, and other commands do not need it

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    points = {
        str(place): Point(row.tokens_per_second, row.quality.bleu, row.bleu_confidence)
        for place, row in enumerate(rows)
    }
    front = [points[place] for place in pareto_front(points)]
    axes.step(
        [point.speed for point in front],
        [point.quality for point in front],
        color=FRONT_COLOR,
        linestyle="--",
        label="Pareto front",
    )
    for row, point in zip(rows, points.values(), strict=True):
        axes.errorbar(*point, color=COLOR, marker="o", capsize=3)
        axes.annotate(
            row.model, point[:2], xytext=(5, 5), textcoords="offset points", parse_math=False
        )
    axes.set_xscale("log")
    axes.margins(x=0.2)  # room for the names
    axes.set_xlabel("tokens per second, greedy")
    axes.set_ylabel("BLEU on the test split")
    figure.legend(loc="outside upper right")  # the best place among many points takes long to find
    return figure


def pareto_front(points: Mapping[str, Point]) -> list[str]:
    """Return the names of the points that no other equals or exceeds in both, slowest first.

    Of several equal points the first is kept.
    """
    front = []
    for name in sorted(points, key=lambda name: points[name][:2], reverse=True):
        if not front or points[name].quality > points[front[-1]].quality:
            front.append(name)
    return front[::-1]
