"""Page of the report: one HTML file with its style, its program, the figures and plotly.js."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from textgen_experiments.evaluation.results import TEACHER
from textgen_experiments.reporting import figures, tables, text_groups
from textgen_experiments.reporting.charts import Chart, looks_of
from textgen_experiments.reporting.comparison import comparison_data
from textgen_experiments.reporting.group_table import group_table
from textgen_experiments.reporting.load_runs import METRICS, Evaluation, ReportedRun
from textgen_experiments.reporting.schema import Json
from textgen_experiments.reporting.settings import settings_table
from textgen_experiments.reporting.survival import survival
from textgen_experiments.reporting.token_view import Sentence
from textgen_experiments.reporting.written_texts import WrittenTexts

HERE = Path(__file__).parent
PROGRAMS = ("point_labels.js", "page.js", "comparison.js", "download.js")
STYLES = ("page.css", "comparison.css")
SECTIONS = {
    "models": "Models",
    "comparison": "Two models side by side",
    "sentences": "Where a student goes wrong",
    "exposure": "Exposure bias",
    "words": "Length and words",
    "learning": "Learning",
    "settings": "Settings",
}


def render(
    runs: Sequence[ReportedRun], sentences: Sequence[Sentence], texts: WrittenTexts | None
) -> str:
    """Return the page as HTML.

    Args:
        runs: at least one.
        sentences: shown token by token; none if no run was evaluated.
        texts: of the evaluated runs; None if no run was evaluated.
    """
    from plotly.offline import get_plotlyjs  # slow to import

    evaluations = [run.evaluation for run in runs if run.evaluation]
    teacher = evaluations[0].teacher if evaluations else None
    rows = {TEACHER: teacher} if teacher else {}
    rows |= {run.name: run.row for run in runs if run.row}
    charts = _charts(runs, texts)
    kept = survival(texts) if texts else {}
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template("page.html").render(
        title=evaluations[0].task["name"] if evaluations else "runs in training",
        lead=lead(runs),
        notes=notes(runs),
        sections=SECTIONS,
        looks=looks_of([run.name for run in runs], teacher=TEACHER in rows),
        models=tables.report_table(tables.MODEL_COLUMNS, runs, rows),
        exposure=tables.report_table(
            tables.EXPOSURE_COLUMNS, runs, {run.name: run.exposure for run in runs}
        ),
        groups=group_table(runs, texts),
        wbr=Markup("|<wbr>"),
        kept=tables.report_table(tables.KEPT_COLUMNS, runs, kept),
        settings=settings_table(runs),
        commands={run.name: run.command for run in runs if run.command},
        signature=next((each.row["signature"] for each in evaluations), None),
        baseline=next((each.row.get("baseline") for each in evaluations), None),
        machine=_machine(evaluations),
        test_pairs=len(evaluations[0].samples) if evaluations else 0,
        min_states=figures.MIN_STATES,
        charts=charts,
        sentences=sentences,
        data=_page_data(charts, sentences)
        | {"comparison": comparison_data(texts) if texts else None},
        css=Markup("\n").join(map(_file, STYLES)),
        programs=Markup("\n").join(map(_file, PROGRAMS)),
        plotly=Markup(get_plotlyjs()),
    )


def _charts(runs: Sequence[ReportedRun], texts: WrittenTexts | None) -> dict[str, list[Chart]]:
    """Return all charts, by their place on the page."""
    names = [run.name for run in runs]
    return {
        "trade_offs": figures.trade_offs(runs),
        "agreement": figures.by_position(runs, "agreement", figures.AGREEMENT_UNIT),
        "divergence": figures.by_position(runs, "divergence", "nats"),
        "errors": [figures.accumulated_error(runs), figures.completed_by_teacher(runs)],
        "words": [
            *(text_groups.by_length(texts, names, side) for side in ("reference", "source")),
            text_groups.by_frequency(texts, names),
            text_groups.word_f1_by_frequency(texts, names),
        ],
        "learning": figures.learning(runs),
    }


def _page_data(charts: dict[str, list[Chart]], sentences: Sequence[Sentence]) -> Json:
    """Return the data of the page's program."""
    drawn = [chart for group in charts.values() for chart in group if chart.traces]
    return {
        "charts": [
            {"name": chart.name, "traces": chart.traces, "layout": chart.layout} for chart in drawn
        ],
        "sentences": [
            asdict(sentence)
            | {
                "tokens": {
                    run: [astuple(token) for token in tokens]
                    for run, tokens in sentence.tokens.items()
                }
            }
            for sentence in sentences
        ],
        "readable": list(sentences[0].tokens) if sentences else [],
    }


def _file(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))


def lead(runs: Sequence[ReportedRun]) -> str:
    """Return the first sentences of the page: the number of models, and the best one."""
    evaluations = {run.name: run.evaluation for run in runs if run.evaluation}
    if not evaluations:
        return "No run has been trained to its end yet."
    best = max(evaluations, key=lambda name: evaluations[name].row["bleu"])
    row, teacher = evaluations[best].row, evaluations[best].teacher
    number = f"{len(evaluations)} {'student' if teacher else 'model'}{'s'[: len(evaluations) > 1]}"
    beside = " beside the teacher" if teacher else ""
    compared = (
        f", where the teacher has {teacher['bleu']:.1f}, at {row['speedup_vs_teacher']:.1f} times "
        "its speed"
        if teacher
        else ""
    )
    return (
        f"{number}{beside} on {len(evaluations[best].samples):,} test pairs. The best, {best}, "
        f"has {row['bleu']:.1f} BLEU{compared}."
    )


def notes(runs: Sequence[ReportedRun]) -> list[str]:
    """Return the notes above the report: gaps, and figures that must not be compared."""
    found = []
    for run in runs:
        if not run.evaluation:
            found.append(
                f"{run.name} is still being trained ({run.progress}): it has no test figures yet."
            )
        elif run.records and not run.records_are_whole:
            found.append(
                f"{run.name} has learning curves that end early ({run.progress}): its {METRICS} "
                "was cut short."
            )
    unmeasured = [run for run in runs if run.evaluation and run.evaluation.exposure is None]
    folders = " ".join(str(run.folder) for run in unmeasured)
    untaught = [run for run in runs if not run.run.experiment.teacher]
    found += _of_all(unmeasured, f"no figures of exposure bias: run `textgen evaluate {folders}`.")
    found += _of_all(
        [run for run in runs if not run.records],
        f"no learning curves: {METRICS} is missing or empty.",
    )
    found += _of_all(untaught, "no teacher on this machine, so that no tokens are colored.")
    return [*found, *_cautions({run.name: run.evaluation for run in runs if run.evaluation})]


def _of_all(runs: Sequence[ReportedRun], lack: str) -> list[str]:
    """Return one note of what `runs` lack, none if there is no run."""
    names = ", ".join(run.name for run in runs)
    return [f"{names} {'has' if len(runs) == 1 else 'have'} {lack}"] if runs else []


def _cautions(evaluated: Mapping[str, Evaluation]) -> list[str]:
    """Return notes on figures that were not measured side by side."""
    found, evaluations = [], [*evaluated.values()]
    teachers = {each.teacher["tokens_per_second"] for each in evaluations if each.teacher}
    if any(each.machine != evaluations[0].machine for each in evaluations):
        found.append("Speeds were measured on several machines: compare speed-ups, not tokens/s.")
    elif len(teachers) > 1:
        found.append(
            "Speeds were measured in several processes: compare speed-ups, not tokens/s. One "
            "`textgen evaluate` with all runs measures them side by side."
        )
    if len({each.row.get("baseline") for each in evaluations}) > 1:
        found.append("p-values are of differences from several baselines.")
    rows = {TEACHER: evaluations[0].teacher or {}} if evaluations else {}
    rows |= {name: each.row for name, each in evaluated.items()}
    precisions = {name: row["precision"] for name, row in rows.items() if row.get("precision")}
    if len({*precisions.values()}) > 1:
        each = ", ".join(f"{name} {precision}" for name, precision in precisions.items())
        found.append(f"Models ran in several precisions ({each}): speeds differ by that, too.")
    return found


def _machine(evaluations: Sequence[Evaluation]) -> str:
    """Return the machine of the first evaluated run, in words."""
    if not evaluations:
        return "no machine yet"
    return ", ".join(f"{name} {value}" for name, value in evaluations[0].machine.items())
