"""Which charts the report shows, and what of the runs' figures is in them."""

import math
import statistics
from collections.abc import Sequence

from textgen_experiments.evaluation.pareto import Point
from textgen_experiments.reporting.charts import (
    Chart,
    Json,
    Line,
    line_chart,
    trade_off_chart,
)
from textgen_experiments.reporting.load_runs import ReportedRun

STRETCHES = 100  # a curve over updates is the means of at most so many stretches of training
FEWEST_STATES = 20  # at a position, for its mean to be shown
ALIKE = "share of equal choices"
QUALITIES = {"bleu": "BLEU", "chrf": "chrF", "rougeL": "ROUGE-L"}
PREFIXES = {
    "reference": "references'",
    "student": "the student's own",
    "teacher": "the teacher's",
}
SHARE = {"range": [-0.03, 1.03], "tickformat": ".0%"}


def trade_offs(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Quality against decode speed, by each measure of quality.

    Speed is that over the teacher's, taken side by side; without a teacher it is tokens a second.
    """
    teacher = next((run.evaluation.teacher for run in runs if run.evaluation), None)
    speed, unit = "speedup_vs_teacher", "speed, times the teacher's"
    if teacher is None:
        speed, unit = "tokens_per_second", "tokens a second"

    def point(row: Json | None, measure: str) -> Point | None:
        if not row or row.get(speed) is None or row.get(measure) is None:
            return None
        return Point(row[speed], row[measure], row.get(f"{measure}_confidence"))

    return [
        trade_off_chart(
            f"trade-off-{measure}",
            f"{title} against speed",
            point(teacher, measure),
            {run.name: point(run.row, measure) for run in runs},
            x=_axis(unit),
            y=_axis(title),
        )
        for measure, title in QUALITIES.items()
    ]


def learning(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Over the updates: quality, loss, who wrote the prefixes and who was to, agreement."""
    wanted = (
        ("bleu", "Validation BLEU", _axis("BLEU", rangemode="tozero")),
        ("loss", "Loss", _axis("each agent's own loss", rangemode="tozero")),
        ("student_share", "Tokens that the student wrote", _axis("share of the prefixes", **SHARE)),
        ("beta", "Beta", _axis("chance of data or expert", **SHARE)),
        ("student_prefix_agreement", "Agreement on its own prefixes", _axis(ALIKE, **SHARE)),
        (
            "reference_prefix_agreement",
            "Agreement on the references' prefixes",
            _axis(ALIKE, **SHARE),
        ),
    )
    return [
        line_chart(
            f"learning-{figure}",
            title,
            {run.name: _over_updates(run, figure) for run in runs},
            x=_axis("update"),
            y=axis,
        )
        for figure, title, axis in wanted
    ]


def _over_updates(run: ReportedRun, figure: str) -> Line | None:
    """The figure's means over stretches of training, each at its last update."""
    points = [(each["update"], each[figure]) for each in run.records if figure in each]
    if not points:
        return None
    size = math.ceil(len(points) / STRETCHES)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [stretch[-1][0] for stretch in stretches], [
        _mean([value for _, value in stretch]) for stretch in stretches
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """Their mean; a gap if one of them is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None


def by_position(runs: Sequence[ReportedRun], measure: str, unit: str) -> list[Chart]:
    """A measure of student beside teacher by position, a chart for each writer of the prefixes.

    Args:
        runs: of the report.
        measure: "agreement" or "divergence".
        unit: title of the axis.
    """
    lines = {
        writer: {run.name: _at_positions(run, writer, measure) for run in runs}
        for writer in PREFIXES
    }
    drawn = [line for group in lines.values() for line in group.values() if line]
    highest = max((value for _, values in drawn for value in values if value), default=1.0)
    return [
        line_chart(
            f"{measure}-{writer}",
            f"{measure.capitalize()} on {whose} prefixes",
            lines[writer],
            x=_axis("position in the text, tokens"),
            y=_axis(unit, range=[0, 1.05 * highest]),  # the same beside each other
        )
        for writer, whose in PREFIXES.items()
    ]


def _at_positions(run: ReportedRun, writer: str, measure: str) -> Line | None:
    """The measure at the first positions, those with states enough."""
    position = run.positions.get(writer)
    return _first(position[measure], position["count"]) if position else None


def _first(values: Sequence[float | None], count: Sequence[float]) -> Line | None:
    """The values at positions with states enough, which grow fewer from position to position."""
    enough = sum(states >= FEWEST_STATES for states in count[: len(values)])
    return (list(range(1, enough + 1)), list(values[:enough])) if enough else None


def accumulated_error(runs: Sequence[ReportedRun]) -> Chart:
    """Excess accumulated error by position: 0 where the student's own prefixes do no harm.

    It is that of drawn texts; which positions enough of them reach is taken from the greedy ones.
    """

    def line(run: ReportedRun) -> Line | None:
        own, excess = run.positions.get("student"), run.exposure.get("excess_accumulated_error")
        return _first(excess, own["count"]) if own and excess else None

    return line_chart(
        "accumulated-error",
        "Excess accumulated error",
        {run.name: line(run) for run in runs},
        x=_axis("position in the text, tokens"),
        y=_axis("ExAccErr, %"),
    )


def finished_by_teacher(runs: Sequence[ReportedRun]) -> Chart:
    """BLEU of texts that the student begins and the teacher finishes."""

    def line(run: ReportedRun) -> Line | None:
        points = run.exposure.get("teacher_finishes")
        return _columns(points, "share", "bleu") if points else None

    return line_chart(
        "teacher-finishes",
        "The student starts, the teacher finishes",
        {run.name: line(run) for run in runs},
        x=_axis("share of the tokens that the student wrote", **SHARE),
        y=_axis("BLEU", rangemode="tozero"),
    )


def by_length(runs: Sequence[ReportedRun], side: str) -> Chart:
    """BLEU of the test pairs whose "reference" or "source" is so long."""

    def line(run: ReportedRun) -> Line | None:
        groups = run.exposure.get(f"bleu_by_{side}_length")
        if not groups:
            return None
        limits = [group["up_to"] for group in groups]
        _, bleu = _columns(groups, "up_to", "bleu")
        starts = [1, *(limit + 1 for limit in limits[:-1])]
        return [_interval(start, end) for start, end in zip(starts, limits, strict=True)], bleu

    return line_chart(
        f"length-{side}",
        f"BLEU by length of the {side}",
        {run.name: line(run) for run in runs},
        x=_axis("words", type="category"),
        y=_axis("BLEU", rangemode="tozero"),
    )


def _interval(start: int, end: int | None) -> str:
    return f"{start} to {end}" if end else f"{start} or more"


def _columns(points: Sequence[Json], x: str, y: str) -> Line:
    return [point[x] for point in points], [point[y] for point in points]


def _axis(title: str, **settings: object) -> Json:
    return {"title": {"text": title}, **settings}
