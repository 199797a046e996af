"""Tables of the report: their columns, and each figure as text and as a value to sort by."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from textgen_experiments.evaluation.results import TEACHER
from textgen_experiments.reporting.charts import Look, looks_of
from textgen_experiments.reporting.load_runs import ReportedRun
from textgen_experiments.reporting.schema import Json

GAP = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its title.
        value: function from a row's object to a figure or, where no best is chosen, a text; None
            for a gap.
        text: format of a figure.
        best: function that chooses the best figure of all runs, which is shown in bold; None for
            figures that are not better or worse.
        help: explanation of the heading.
    """

    heading: str
    value: Callable[[Json], float | str | None]
    text: str = "{:.1f}"
    best: Callable[[Sequence[float]], float] | None = None
    help: str = ""


@dataclass(frozen=True)
class Cell:
    """A figure as text, its value (None for a gap), and a flag for the best of its column."""

    text: str
    value: float | str | None
    best: bool = False


@dataclass(frozen=True)
class ModelRow:
    """Row of a model; the first cell is its name."""

    name: str
    look: Look
    training: bool
    cells: list[Cell]


@dataclass(frozen=True)
class ReportTable:
    """Columns with at least one figure, and a row for each model."""

    columns: list[Column]
    rows: list[ModelRow]


def _field(name: str) -> Callable[[Json], float | None]:
    return lambda row: row.get(name)


def _millions(name: str) -> Callable[[Json], float | None]:
    return lambda row: None if row.get(name) is None else row[name] / 1e6


def _mean_over_states(measure: str, writer: str) -> Callable[[Json], float | None]:
    """Return a function for the mean of `measure` over all states on the writer's prefixes."""

    def value(exposure: Json) -> float | None:
        position = (exposure.get("positions") or {}).get(writer)
        curve = (position or {}).get(measure)  # earlier versions lack some
        if not position or not curve or None in curve or not sum(position["count"]):
            return None
        weighted = zip(curve, position["count"], strict=True)
        return sum(figure * states for figure, states in weighted) / sum(position["count"])

    return value


def _beam(name: str) -> Callable[[Json], float | None]:
    return lambda row: (row.get("beam") or {}).get(name)


MODEL_COLUMNS = (
    Column("BLEU", _field("bleu"), best=max),
    Column(
        "\N{PLUS-MINUS SIGN}",
        _field("bleu_confidence"),
        help="half the width of BLEU's 95 % interval",
    ),
    Column(
        "p", _field("p_value"), "{:.3f}", help="p-value of the difference in BLEU from the baseline"
    ),
    Column("speed-up", _field("speedup_vs_teacher"), "{:.1f}\N{MULTIPLICATION SIGN}", max),
    Column("tokens/s", _field("tokens_per_second"), "{:,.0f}", max),
    Column("sentences/s", _field("sentences_per_second"), "{:,.0f}", max),
    Column("parameters", _millions("parameters"), "{:.2f} M"),
    Column("chrF", _field("chrf"), best=max),
    Column("ROUGE-1", _field("rouge1"), best=max),
    Column("ROUGE-2", _field("rouge2"), best=max),
    Column("ROUGE-L", _field("rougeL"), best=max),
    Column(
        "exact", _field("exact_match"), "{:.1f} %", max, "share of texts equal to their reference"
    ),
    Column("beam", _beam("size"), "{:.0f}", help="size of the beam of the next column"),
    Column("BLEU by beam", _beam("bleu"), best=max),
    Column("training pairs", _field("train_pairs"), "{:,.0f}"),
    Column(
        "training sources",
        lambda row: row.get("train_sources") or None,  # a column only where there are some
        "{:,.0f}",
        help="sources without references, beside the pairs",
    ),
    Column("training s", _field("train_seconds"), "{:,.0f}"),
    Column(
        "teacher queries",
        _millions("teacher_tokens_queried"),
        "{:.2f} M",
        help="states at which the training queried the teacher",
    ),
    Column(
        "acceptance",
        _field("acceptance"),
        "{:.1%}",
        max,
        "share of its tokens that the teacher accepts with it as a draft",
    ),
    Column(
        "tokens/pass",
        _field("tokens_per_pass"),
        "{:.2f}",
        max,
        "tokens for each block that the teacher reads with it as a draft",
    ),
    Column(
        "tokenized BLEU",
        _field("tokenized_lowercase_bleu"),
        best=max,
        help="on lower-cased tokens, as in older papers; not comparable with BLEU",
    ),
)
PREFIX_LABELS = {"reference": "references", "student": "own", "teacher": "teacher"}
EXPOSURE_COLUMNS = (
    *(
        Column(f"agreement, {label}", _mean_over_states("agreement", writer), "{:.1%}", max)
        for writer, label in PREFIX_LABELS.items()
    ),
    *(
        Column(f"divergence, {label}", _mean_over_states("divergence", writer), "{:.2f}", min)
        for writer, label in PREFIX_LABELS.items()
    ),
    Column(
        "overlap of the best, own",
        _mean_over_states("top_k_overlap", "student"),
        "{:.1%}",
        max,
        help="share of the student's 10 most probable tokens that are among the teacher's",
    ),
    Column(
        "shared mass, own",
        _mean_over_states("shared_mass", "student"),
        "{:.1%}",
        max,
        help="probability of these tokens, mean of student and teacher",
    ),
    Column(
        "entropy gap, own",
        _mean_over_states("entropy_gap", "student"),
        "{:.2f}",
        min,
        help="distance of both entropies, nats",
    ),
    Column("likelihood risk", _field("likelihood_risk"), "{:.2f}", min),
    Column("coverage risk", _field("coverage_risk"), "{:.2f}", min),
    Column("length ratio", _field("length_ratio"), "{:.2f}"),
    Column("repetition", _field("repetition_rate"), "{:.1%}", min),
)
KEPT_COLUMNS = tuple(
    column
    for kind in ("placeholders", "numbers", "names")
    for column in (
        Column(kind, _field(kind), "{:.1%}", max, f"share of the {kind} that the text keeps"),
        Column(
            f"of {kind}",
            _field(f"{kind}_asked"),
            "{:,.0f}",
            help=f"{kind} that both source and reference have",
        ),
    )
)


def report_table(
    columns: Sequence[Column], runs: Sequence[ReportedRun], objects: Mapping[str, Json]
) -> ReportTable:
    """Return a table with the columns for which some model has a figure.

    Args:
        columns: candidates.
        runs: of the report; each has a row, also while it is being trained.
        objects: the figures of each model, by its name; the teacher, if it is among them, has the
            first row.
    """
    looks = looks_of([run.name for run in runs], teacher=TEACHER in objects)
    training = {run.name for run in runs if not run.evaluation}
    return table_of(columns, looks, objects, training)


def table_of(
    columns: Sequence[Column],
    looks: Mapping[str, Look],
    objects: Mapping[str, Json],
    training: Collection[str] = (),
) -> ReportTable:
    """Return a table with a row for each name that has a look, and the columns with some figure.

    Args:
        columns: candidates.
        looks: by the names of the rows, in order.
        objects: the figures of each row by its name; the teacher's are never the best.
        training: names of models that are still being trained.
    """
    known = [c for c in columns if any(c.value(each) is not None for each in objects.values())]
    students = [each for name, each in objects.items() if name != TEACHER]
    tops = [_best_figure(column, students) for column in known]
    rows = []
    for name, look in looks.items():
        figures = [column.value(objects.get(name, {})) for column in known]
        cells = [
            _cell(column, figure, name != TEACHER and figure == top)
            for column, figure, top in zip(known, figures, tops, strict=True)
        ]
        rows.append(ModelRow(name, look, name in training, [Cell(name, name), *cells]))
    return ReportTable(known, rows)


def _best_figure(column: Column, objects: Sequence[Json]) -> float | None:
    """Return the column's best figure, or None if fewer than two models have one."""
    values = [column.value(each) for each in objects]
    figures = [value for value in values if isinstance(value, int | float)]
    return column.best(figures) if column.best and len(figures) > 1 else None


def _cell(column: Column, figure: float | str | None, best: bool) -> Cell:
    if figure is None:
        return Cell(GAP, None)
    return Cell(column.text.format(figure), figure, best)
