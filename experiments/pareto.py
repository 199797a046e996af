"""Quality against decode speed as a picture, for TensorBoard."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.results import Row

COLOR, FRONT_COLOR = "#0072B2", "#D55E00"  # of Okabe and Ito's, for all kinds of color vision


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in one of BLEU and speed and equals in the other, slow first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row.tokens_per_second, -row.quality.bleu)):
        if not front or row.quality.bleu > front[-1].quality.bleu:
            front.append(row)
    return front[::-1]


def pareto_figure(rows: Sequence[Row]) -> Figure:
    """BLEU, with its 95 % interval, against tokens per second, and the front of the best."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    front = [(row.tokens_per_second, row.quality.bleu) for row in pareto_front(rows)]
    speeds, qualities = zip(*front, strict=True)
    axes.step(speeds, qualities, color=FRONT_COLOR, linestyle="--", label="Pareto front")
    for row in rows:
        point = row.tokens_per_second, row.quality.bleu
        axes.errorbar(*point, row.bleu_confidence, color=COLOR, marker="o", capsize=3)
        axes.annotate(row.model, point, xytext=(5, 5), textcoords="offset points")
    axes.set_xscale("log")
    axes.margins(x=0.2)  # room for the names
    axes.set_xlabel("tokens per second, greedy")
    axes.set_ylabel("BLEU on the test split")
    axes.legend()
    return figure
