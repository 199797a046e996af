"""Charts of the report, made from the runs' figures."""

import math
import statistics
from collections.abc import Sequence

from textgen_experiments.evaluation.pareto import Point
from textgen_experiments.reporting.charts import (
    Chart,
    Line,
    line_chart,
    trade_off_chart,
)
from textgen_experiments.reporting.load_runs import ReportedRun
from textgen_experiments.reporting.schema import Json

MAX_CURVE_POINTS = 100  # of a curve over updates; each is a mean over some updates
MIN_STATES = 20  # at a position, for its mean to be shown
AGREEMENT_UNIT = "share of equal choices"
QUALITY_TITLES = {"bleu": "BLEU", "chrf": "chrF", "rougeL": "ROUGE-L"}
PREFIX_TITLES = {
    "reference": "references'",
    "student": "the student's own",
    "teacher": "the teacher's",
}
SHARE_AXIS = {"range": [-0.03, 1.03], "tickformat": ".0%"}


def trade_offs(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return charts of decode speed and each measure of quality.

    Speed is relative to the teacher's, measured side by side; tokens per second without a teacher.
    """
    teacher = next((run.evaluation.teacher for run in runs if run.evaluation), None)
    speed, unit = "speedup_vs_teacher", "speed, times the teacher's"
    if teacher is None:
        speed, unit = "tokens_per_second", "tokens per second"

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
        for measure, title in QUALITY_TITLES.items()
    ]


def learning(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return charts over the updates: quality, loss, writers of the prefixes, agreement."""
    wanted = (
        ("bleu", "Validation BLEU", _axis("BLEU", rangemode="tozero")),
        ("loss", "Loss", _axis("each agent's own loss", rangemode="tozero")),
        (
            "student_share",
            "Share of tokens written by the student",
            _axis("share of the prefixes' tokens", **SHARE_AXIS),
        ),
        ("beta", "Beta", _axis("probability of data or expert", **SHARE_AXIS)),
        (
            "student_prefix_agreement",
            "Agreement on the student's own prefixes",
            _axis(AGREEMENT_UNIT, **SHARE_AXIS),
        ),
        (
            "reference_prefix_agreement",
            "Agreement on the references' prefixes",
            _axis(AGREEMENT_UNIT, **SHARE_AXIS),
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
    """Return means of the figure over stretches of training, each at its last update."""
    points = [(each["update"], each[figure]) for each in run.records if figure in each]
    if not points:
        return None
    size = math.ceil(len(points) / MAX_CURVE_POINTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [stretch[-1][0] for stretch in stretches], [
        _mean_or_gap([value for _, value in stretch]) for stretch in stretches
    ]


def _mean_or_gap(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values, or None if one of them is None."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None


def by_position(runs: Sequence[ReportedRun], measure: str, unit: str) -> list[Chart]:
    """Return charts of a measure by position, one for each writer of the prefixes.

    Args:
        runs: of the report.
        measure: "agreement" or "divergence".
        unit: title of the axis.
    """
    lines = {
        writer: {run.name: _at_positions(run, writer, measure) for run in runs}
        for writer in PREFIX_TITLES
    }
    drawn = [line for group in lines.values() for line in group.values() if line]
    highest = max((value for _, values in drawn for value in values if value), default=1.0)
    return [
        line_chart(
            f"{measure}-{writer}",
            f"{measure.capitalize()} on {whose} prefixes",
            lines[writer],
            x=_axis("position in the text, tokens"),
            y=_axis(unit, range=[0, 1.05 * highest]),  # one range for all charts
        )
        for writer, whose in PREFIX_TITLES.items()
    ]


def _at_positions(run: ReportedRun, writer: str, measure: str) -> Line | None:
    """Return the measure at the first positions, those with enough states."""
    position = run.positions.get(writer)
    return _first(position[measure], position["count"]) if position else None


def _first(values: Sequence[float | None], count: Sequence[float]) -> Line | None:
    """Return the values at positions with enough states; `count` falls with the position."""
    enough = sum(states >= MIN_STATES for states in count[: len(values)])
    return (list(range(1, enough + 1)), list(values[:enough])) if enough else None


def accumulated_error(runs: Sequence[ReportedRun]) -> Chart:
    """Return a chart of the excess accumulated error by position.

    The error is 0 where the student's own prefixes do no harm. It is measured on sampled texts; the
    number of states at a position is that of the greedy texts.
    """

    def line(run: ReportedRun) -> Line | None:
        student, excess = run.positions.get("student"), run.exposure.get("excess_accumulated_error")
        return _first(excess, student["count"]) if student and excess else None

    return line_chart(
        "accumulated-error",
        "Excess accumulated error",
        {run.name: line(run) for run in runs},
        x=_axis("position in the text, tokens"),
        y=_axis("excess accumulated error, %"),
    )


def completed_by_teacher(runs: Sequence[ReportedRun]) -> Chart:
    """Return a chart of the BLEU of texts that the student begins and the teacher completes."""

    def line(run: ReportedRun) -> Line | None:
        points = run.exposure.get("teacher_finishes")
        return _columns(points, "share", "bleu") if points else None

    return line_chart(
        "teacher-finishes",
        "Texts begun by the student, completed by the teacher",
        {run.name: line(run) for run in runs},
        x=_axis("share of the tokens written by the student", **SHARE_AXIS),
        y=_axis("BLEU", rangemode="tozero"),
    )


def _columns(points: Sequence[Json], x: str, y: str) -> Line:
    return [point[x] for point in points], [point[y] for point in points]


def _axis(title: str, **settings: object) -> Json:
    return {"title": {"text": title}, **settings}
