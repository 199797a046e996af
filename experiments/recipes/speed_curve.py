"""Recipe of the curve of quality against speed: students of several sizes, trained alike.

Each learns by seqkd from the same texts of the teacher's, those of the shipped student, for the
same number of updates. All begin with layers of the teacher, but for the recurrent one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from textgen_agents.evaluation.quality import quality_on
from textgen_agents.seqkd import SeqKD
from textgen_env.bounds import check_at_least
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_env.tasks import TASKS
from textgen_experiments.evaluation.results import RESULTS, TEACHER, write_json
from textgen_experiments.evaluation.tables import markdown_table, print_table
from textgen_experiments.evaluation.timing import decode_speeds, timed_model
from textgen_experiments.recipes import configs
from textgen_experiments.reporting.charts import COLORS
from textgen_experiments.runs.experiment import VERSES_TEACHER, Experiment
from textgen_experiments.runs.factories import build_task, num_parameters
from textgen_experiments.runs.folder import write_text
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.precisions import PRECISIONS, load_to_act
from textgen_experiments.runs.progress import progress, tell
from textgen_experiments.runs.train import PREPARED, Show, train

DROPOUT = 0.1
COPIED = partial(TeacherLayers, dropout=DROPOUT)
MARKERS = {"float32": "o", "bfloat16": "s", "int8": "^"}
CURVE_COLORS = ("#000000", *COLORS)  # the teacher is black


@dataclass(frozen=True)
class SpeedCurveOptions:
    """Train students of several sizes alike, and draw their quality against their speed.

    Attributes:
        output: folder of the runs, of `results.json`, `tables.md` and `curve.png`.
        texts: folder of a run of seqkd with the same sources, whose texts of the teacher are
            learned from if they are there.
        updates: of every student, 64 texts each.
        at_once: runs at the same time; one a core if not given.
    """

    output: Path = Path("runs/speed-curve")
    texts: Path = Path("runs/distill-verses/seqkd")
    updates: int = 1500
    at_once: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, updates=1, at_once=1)


@dataclass(frozen=True)
class CurvePoint:
    """A model in a precision: its greedy quality on the test split, and its speed.

    Attributes:
        model: its name.
        precision: a name in `PRECISIONS`.
        parameters: number of weights.
        bleu: sacreBLEU.
        chrf: chrF2.
        signature: sacreBLEU's signature of `bleu`.
        tokens_per_second: of greedy decoding.
        speedup: tokens per second over those of the teacher in float32.
    """

    model: str
    precision: str
    parameters: int
    bleu: float
    chrf: float
    signature: str
    tokens_per_second: float
    speedup: float


def speed_curve(options: SpeedCurveOptions) -> None:
    """Train the students, score and time them in each precision, write table and figure."""
    runs = train_curve(options)
    folders = {TEACHER: VERSES_TEACHER, **{run.name: run / "model" for run in runs}}
    points = curve_points(folders)
    title = f"{options.updates:,} updates of seqkd each; speed-up over the teacher in float32"
    write_json(options.output / RESULTS, {"rows": [*map(asdict, points)]})
    cells = [curve_cells(point) for point in points]
    text = f"{title}\n\n{markdown_table(cells, left=2)}\n\nBLEU: `{points[0].signature}`\n"
    write_text(options.output / "tables.md", text)
    draw_curve(points, options.output / "curve.png")
    print_table(title, list(cells[0]), [[*row.values()] for row in cells])
    tell(f"written to {options.output}")


def curve_runs(options: SpeedCurveOptions) -> dict[Path, Experiment]:
    """Return the run of each student by folder, the one that prepares the texts first."""
    distilled = partial(configs.distilled_student, SeqKD(), updates=options.updates)
    copied = partial(distilled, learning_rate=1e-3)
    students = {
        "6+2": copied(start=COPIED(encoder=6, decoder=2)),
        "3+3": copied(start=COPIED(encoder=3, decoder=3)),
        "3+2": copied(start=COPIED(encoder=3, decoder=2)),
        "2+2": copied(start=COPIED(encoder=2, decoder=2)),
        "1+2": copied(start=COPIED(encoder=1, decoder=2)),
        "3+2-ssru": copied(student=HybridConfig(), start=COPIED(encoder=3, decoder=2)),
        "recurrent": distilled(
            learning_rate=4e-3, student=RecurrentConfig(width=288, dropout=DROPOUT)
        ),
    }
    return {options.output / name: experiment for name, experiment in students.items()}


def train_curve(options: SpeedCurveOptions) -> dict[Path, Experiment]:
    """Train all students, and return their runs by folder."""
    runs = curve_runs(options)
    (first, experiment), *others = runs.items()
    texts = options.texts / PREPARED
    work = partial(train_on_texts, texts if texts.exists() else first / PREPARED)
    train_in_parallel({first: experiment}, work, options.at_once)
    train_in_parallel(dict(others), work, options.at_once)
    return runs


def train_on_texts(texts: Path, experiment: Experiment, folder: Path, show: Show) -> Outcome:
    """Train a run on the teacher's texts of another, if they are there."""
    return train(experiment, folder, show, texts)


def curve_points(folders: dict[str, Path]) -> list[CurvePoint]:
    """Score and time models in each precision, in one process.

    Args:
        folders: folders of models of one tokenizer, by name, the teacher's first.
    """
    tokenizer = load_tokenizer(next(iter(folders.values())))
    task = build_task(TASKS["verses"], tokenizer)
    names = [(name, precision) for name in folders for precision in PRECISIONS]
    models = [load_to_act(folders[name], precision) for name, precision in names]
    with progress("scoring", total=len(models) + 1) as advance:
        qualities = []
        for model in models:
            qualities.append(quality_on(model, task, task.test))
            advance()
        speeds = decode_speeds([timed_model(model, task) for model in models], same_tokens=True)
        advance()
    sizes = {name: num_parameters(load_model(path)) for name, path in folders.items()}
    return [
        CurvePoint(
            *name,
            parameters=sizes[name[0]],
            bleu=quality.bleu,
            chrf=quality.chrf,
            signature=quality.signature,
            tokens_per_second=speed.tokens_per_second,
            speedup=speed.speedup,
        )
        for name, quality, speed in zip(names, qualities, speeds, strict=True)
    ]


def curve_cells(point: CurvePoint) -> dict[str, str]:
    """Return the cells of a point by their headings."""
    return {
        "model": point.model,
        "precision": point.precision,
        "BLEU": f"{point.bleu:.1f}",
        "chrF": f"{point.chrf:.1f}",
        "parameters": f"{point.parameters / 1e6:.2f} M",
        "tokens/s": f"{point.tokens_per_second:,.0f}",
        "speed-up": f"{point.speedup:.1f}",
    }


def draw_curve(points: Sequence[CurvePoint], path: Path) -> None:
    """Plot BLEU against speed-up: a color for each model, a marker for each precision."""
    from matplotlib.figure import Figure  # slow to import, and other commands do not need it

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(point.model for point in points))
    for name, color in zip(names, CURVE_COLORS, strict=False):
        own = [point for point in points if point.model == name]
        speeds, scores = [point.speedup for point in own], [point.bleu for point in own]
        axes.plot(speeds, scores, color=color, linewidth=0.8, label=name)
        for point in own:
            axes.plot(point.speedup, point.bleu, MARKERS[point.precision], color=color)
    for precision, marker in MARKERS.items():
        axes.plot([], [], marker, color="gray", label=precision)
    axes.set_xlabel("speed-up over the teacher in float32")
    axes.set_ylabel("BLEU on the test split")
    axes.legend(ncols=2, fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
