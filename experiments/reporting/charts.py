"""Charts as plotly.js figures: plain values that the page draws.

Colors of text, grid and background follow the page's theme and are left to `page.js`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textgen_experiments.evaluation.pareto import Point, pareto_front
from textgen_experiments.evaluation.results import TEACHER

Json = dict[str, Any]
Line = tuple[Sequence[object], Sequence[float | None]]
"""x and y; a y of None is a gap in the line."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#B5A700")
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross", "x", "star", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
GRAY = "#808080"  # as far from black as from white
MARKERS_ON_LINE = 8  # at most
LEFT, RIGHT = 0.1, 0.3  # powers of ten beside the slowest model and, for its name, the fastest


@dataclass(frozen=True)
class Chart:
    """A figure of plotly.js.

    Attributes:
        name: its id on the page.
        title: what is shown.
        traces: plotly's data; the "legendgroup" of each is the model that it shows.
        layout: plotly's layout but for the theme.
        missing: models that have no such figures.
    """

    name: str
    title: str
    traces: list[Json]
    layout: Json
    missing: list[str]


@dataclass(frozen=True)
class Look:
    """How a model is drawn, in every chart and in the key to all of them."""

    color: str
    marker: str
    dash: str


TEACHER_LOOK = Look(GRAY, "hexagram", "solid")


def looks_of(runs: Iterable[str], *, teacher: bool) -> dict[str, Look]:
    """How each model is drawn: the teacher, if there is one, and the runs in their order.

    Okabe and Ito's colors, for all kinds of color vision, without black and with a yellow dark
    enough for white paper. The numbers of colors and of markers have no common divisor: 56 runs
    differ in one of them.
    """
    numbered = {
        run: Look(
            COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]
        )
        for index, run in enumerate(runs)
    }
    return {TEACHER: TEACHER_LOOK, **numbered} if teacher else numbered


def line_chart(
    name: str, title: str, lines: Mapping[str, Line | None], *, x: Json, y: Json
) -> Chart:
    """A line for each run.

    Args:
        name: id of the chart.
        title: what is shown.
        lines: of every run of the report, in its order; None for a run without figures.
        x: plotly's settings of the axis.
        y: the same.
    """
    looks = looks_of(lines, teacher=False)
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
    """Quality against decode speed, with the front of the models that none beats in both.

    Args:
        name: id of the chart.
        title: what is shown.
        teacher: None if there is none.
        runs: of every run of the report, in its order; None for a run without figures.
        x: plotly's settings of the axis of speed.
        y: the same of quality.
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
        if model in front:
            place = ("top right", "bottom left")[front.index(model) % 2]  # away from neighbors
            trace |= {"mode": "markers+text", "text": [model], "textposition": place}
        traces.append(trace)
    speeds = [math.log10(point.speed) for point in points.values()]
    room = {"range": [min(speeds) - LEFT, max(speeds) + RIGHT]} if speeds else {}
    ticks = [digit * 10.0**power for power in range(-2, 6) for digit in (1, 2, 5)]
    layout = {"xaxis": {"type": "log", "tickvals": ticks, **room, **x}, "yaxis": y}
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


def _trace(name: str, style: Look, line: Line) -> Json:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "legendgroup": name,
        "x": list(line[0]),
        "y": list(line[1]),
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {
            "symbol": style.marker,
            "color": style.color,
            "size": 7,
            "maxdisplayed": MARKERS_ON_LINE,
        },
    }
