"""Charts as figures of plotly.js: plain values that the page draws.

Colors of text, grid and background follow the page's theme and are set by `page.js`.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from textgen_experiments.evaluation.pareto import Point, pareto_front
from textgen_experiments.evaluation.results import TEACHER
from textgen_experiments.reporting.axes import log_axis
from textgen_experiments.reporting.schema import Json

Line = tuple[Sequence[object], Sequence[float | None]]
"""x and y; a y of None is a gap in the line."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#B5A700")
MARKER_SYMBOLS = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "x",
    "star",
    "triangle-down",
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
GRAY = "#808080"  # halfway between black and white, for both themes
MAX_MARKERS_ON_LINE = 8


@dataclass(frozen=True)
class Chart:
    """A figure of plotly.js.

    Attributes:
        name: its id on the page.
        title: its caption.
        traces: plotly's data; the "legendgroup" of a trace is the name of its model.
        layout: plotly's layout without the theme.
        missing: names of the models without such figures.
    """

    name: str
    title: str
    traces: list[Json]
    layout: Json
    missing: list[str]


@dataclass(frozen=True)
class Look:
    """Color, marker and line of a model, the same in every chart and in the key."""

    color: str
    marker: str
    dash: str


TEACHER_LOOK = Look(GRAY, "hexagram", "solid")


def looks_of(runs: Iterable[str], *, teacher: bool) -> dict[str, Look]:
    """Return the look of each model: the teacher, if there is one, and the runs in their order.

    The colors are those of Okabe and Ito, for all kinds of color vision, without black and with a
    yellow dark enough for white paper. The numbers of colors and of markers have no common divisor,
    so that 56 runs differ in one of the two.
    """
    numbered = {
        run: Look(
            COLORS[index % len(COLORS)],
            MARKER_SYMBOLS[index % len(MARKER_SYMBOLS)],
            DASHES[index % len(DASHES)],
        )
        for index, run in enumerate(runs)
    }
    return {TEACHER: TEACHER_LOOK, **numbered} if teacher else numbered


def line_chart(
    name: str, title: str, lines: Mapping[str, Line | None], *, x: Json, y: Json
) -> Chart:
    """Return a chart with a line for each run, and for the teacher if it has one.

    Args:
        name: id of the chart.
        title: caption of the chart.
        lines: of every run of the report, in its order; None for a run without figures. The
            teacher's may be among them.
        x: plotly's settings of the horizontal axis.
        y: plotly's settings of the vertical axis.
    """
    runs = [model for model in lines if model != TEACHER]
    looks = looks_of(runs, teacher=TEACHER in lines)
    traces = [_trace(run, looks[run], line) for run, line in lines.items() if line is not None]
    missing = [run for run, line in lines.items() if line is None]
    return Chart(name, title, traces, {"xaxis": x, "yaxis": y}, missing)


def trade_off_chart(
    name: str,
    title: str,
    teacher: Point | None,
    runs: Mapping[str, Point | None],
    *,
    x: Json,
    y: Json,
) -> Chart:
    """Return a chart of quality against decode speed, with the Pareto front and all names.

    Args:
        name: id of the chart.
        title: caption of the chart.
        teacher: point of the teacher; None without a teacher.
        runs: points of all runs of the report, in its order; None for a run without figures.
        x: plotly's settings of the axis of speed.
        y: plotly's settings of the axis of quality.
    """
    looks = looks_of(runs, teacher=True)
    points = {run: point for run, point in runs.items() if point}
    points |= {TEACHER: teacher} if teacher else {}
    front = pareto_front(points)
    traces = [_front_line([points[model] for model in front])] if points else []
    for model, point in points.items():
        trace = _trace(model, looks[model], ([point.speed], [point.quality]))
        trace["marker"]["size"] = 13
        if point.error is not None:
            trace["error_y"] = {"array": [point.error], "thickness": 1, "width": 3}
        trace["meta"] = {"label": model}  # the page's program finds room for it
        traces.append(trace)
    speeds = log_axis([point.speed for point in points.values()])
    layout = {"xaxis": {**speeds, **x}, "yaxis": y}
    return Chart(name, title, traces, layout, [run for run, point in runs.items() if not point])


def _front_line(points: Sequence[Point]) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [point.speed for point in points],
        "y": [point.quality for point in points],
        "line": {"color": GRAY, "dash": "dot", "width": 1.5, "shape": "vh"},
        "hoverinfo": "skip",
    }


def _trace(name: str, look: Look, line: Line) -> Json:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(name, quote=False),  # plotly reads tags
        "legendgroup": name,
        "x": list(line[0]),
        "y": list(line[1]),
        "line": {"color": look.color, "dash": look.dash, "width": 2},
        "marker": {
            "symbol": look.marker,
            "color": look.color,
            "size": 7,
            "maxdisplayed": MAX_MARKERS_ON_LINE,
        },
    }
