"""The algorithms side by side on real text, over several seeds: tables and a plot, generated.

Same teacher, student, pairs and number of updates for all; the first half of them is mle's where
the paper begins with a trained student. What the teacher writes before training is the same for
every seed, and written for the first. Test data is looked at once, after all choices were made on
validation. What is measured of a run is kept in its folder, so that a study that was stopped goes
on where it was.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from textgen_agents import AGENTS
from textgen_agents.evaluation.quality import LENGTHS, paired_bootstrap
from textgen_agents.mle import MLE
from textgen_agents.training.checkpoint import load_tensors, save_atomically
from textgen_env.models.storage import load_tokenizer
from textgen_experiments.evaluation.scores import ModelScores, read_scores, train_and_judge
from textgen_experiments.recipes import configs
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import write_text
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.run_log import console
from textgen_experiments.runs.train import PREPARED, Outcome, Show, read_outcome

BASELINE = "seqkd"
DATA_SWEEP_AGENTS = ("mle", "seqkd", "imitkd_full")  # who are compared over amounts of data
START = "start"  # in place of an agent's name: mle for the first half of the updates
STARTED = (
    "seqinter",
    "distillm",
    "gkd",
    "f_distill",
    "distillm2",
    "skd",
    "switch",
    "adaswitch",
    "atkd",
    "minillm",
    "aggrevate",
)
"""Agents that go on from there, as in their papers from a student that was trained before."""
BY_POLICY_GRADIENT = ("minillm", "aggrevate")
GRADIENT_RATE = 0.1  # their learning rate, as a share of the others'
SWEEP_STYLES = {"mle": ("#D55E00", "s"), "seqkd": ("#009E73", "^"), "imitkd_full": ("#0072B2", "o")}
"""Agent -> color, of Okabe and Ito's for all kinds of color vision, and marker."""
SIGNIFICANCE_LEVEL = 0.05
TABLE_WIDTH = 150
HEADINGS = [
    "agent",
    "BLEU",
    "chrF",
    f"better / worse than {BASELINE}",
    "like the teacher on own prefixes",
    "on references",
    *(f"BLEU to {limit} words" for limit in LENGTHS),
    "longer",
    "teacher tokens",
    "seconds",
]


@dataclass(frozen=True)
class StudyOptions:
    """Train agents with several seeds on verses, and compare them on the test split.

    Attributes:
        output: folder of the runs, `results.json`, `tables.md` and `pairs.png`.
        agents: which ones; all of them if none is named.
        seeds: runs of each; one tells nothing of the error.
        updates: of every student in all, at least 2.
        pairs: training pairs of the table.
        more_pairs: amounts at which mle, seqkd and imitkd_full are trained besides; 0 for all
            pairs.
    """

    output: Path = Path("runs/study")
    agents: tuple[Literal[tuple(AGENTS)], ...] = tuple(AGENTS)  # pyright: ignore[reportInvalidTypeForm]
    seeds: int = 3
    updates: int = 500
    pairs: int = 2000
    more_pairs: tuple[int, ...] = (500, 8000, 0)

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("updates", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class StudyRow:
    """One line of the table: an agent with so many pairs, over all seeds.

    Attributes:
        agent: its name.
        pairs: training pairs.
        bleu: mean over seeds.
        bleu_error: standard error of the mean; None of one seed.
        chrf: mean over seeds.
        bleu_by_length: means over seeds, as in `ModelScores`.
        better: seeds in which it is significantly better than seqkd (paired bootstrap).
        worse: seeds in which it is significantly worse.
        student_prefix_agreement: mean over seeds, in [0, 1].
        reference_prefix_agreement: mean over seeds, in [0, 1].
        teacher_tokens: states asked about, mean over seeds.
        train_seconds: mean over seeds, on one core of the machine; mle's first half included.
    """

    agent: str
    pairs: int
    bleu: float
    bleu_error: float | None
    chrf: float
    bleu_by_length: list[float | None]
    better: int
    worse: int
    student_prefix_agreement: float
    reference_prefix_agreement: float
    teacher_tokens: float
    train_seconds: float


def study(options: StudyOptions) -> None:
    """Train and judge all runs, print the table, write `results.json`, `tables.md`, `pairs.png`."""
    runs = study_runs(options)
    train_in_parallel(starting_runs(options))
    train_in_parallel(runs, train_and_judge_one)
    rows = study_rows(options, runs)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"seeds": options.seeds, "rows": [asdict(row) for row in rows]}
    write_text(options.output / "results.json", json.dumps(content, indent=2) + "\n")
    write_text(options.output / "tables.md", markdown(options, rows))
    draw_study(rows, options.output / "pairs.png")
    show(options, rows)
    console.print(f"written to {options.output}")


def kinds_of_runs(options: StudyOptions) -> list[tuple[str, int]]:
    """Agent and pairs of every row, the table's first."""
    swept = [agent for agent in DATA_SWEEP_AGENTS if agent in options.agents]
    return [(agent, options.pairs) for agent in options.agents] + [
        (agent, pairs) for pairs in options.more_pairs for agent in swept
    ]


def study_runs(options: StudyOptions) -> dict[Path, Experiment]:
    """Every run by its folder: seed after seed, and of each the slowest kinds first."""
    return {
        folder_of(options, agent, pairs, seed): _study_run(options, agent, pairs, seed)
        for seed in range(options.seeds)
        for agent, pairs in reversed(kinds_of_runs(options))
    }


def starting_runs(options: StudyOptions) -> dict[Path, Experiment]:
    """The students that agents in `STARTED` go on from, by folder."""
    seeds = range(options.seeds) if set(options.agents) & set(STARTED) else ()
    return {
        folder_of(options, START, options.pairs, seed): _half(
            configs.study(MLE(), seed, options.pairs or None, options.updates)
        )
        for seed in seeds
    }


def _study_run(options: StudyOptions, agent: str, pairs: int, seed: int) -> Experiment:
    """What is trained of `agent`."""
    experiment = configs.study(AGENTS[agent](), seed, pairs or None, options.updates)
    if agent not in STARTED:
        return experiment
    half = _half(experiment)
    share = GRADIENT_RATE if agent in BY_POLICY_GRADIENT else 1.0
    return replace(
        half,
        student_init=folder_of(options, START, pairs, seed) / "model",
        learner=replace(half.learner, learning_rate=share * half.learner.learning_rate),
    )


def _half(experiment: Experiment) -> Experiment:
    """The same with half of the updates."""
    learner = experiment.learner
    half = replace(learner, updates=learner.updates // 2, warmup=learner.warmup // 2)
    return replace(experiment, learner=half)


def folder_of(options: StudyOptions, agent: str, pairs: int, seed: int) -> Path:
    """Where a run is; 0 pairs stand for all."""
    return options.output / f"{agent}-{pairs or 'all'}-{seed}"


def train_and_judge_one(experiment: Experiment, folder: Path, show: Show) -> Outcome:
    """A run of a study, with what the teacher wrote for the first seed if that is there.

    It does not depend on the seed. The run's teacher tokens and seconds count it all the same.
    """
    own = folder / PREPARED
    first = folder.with_name(f"{folder.name.rsplit('-', 1)[0]}-0") / PREPARED
    if first.exists() and not own.exists():
        save_atomically(own, *load_tensors(first))
    return train_and_judge(experiment, folder, show)


def study_rows(options: StudyOptions, runs: dict[Path, Experiment]) -> list[StudyRow]:
    """A row for each agent and amount of data."""
    folder, experiment = next(iter(runs.items()))
    task = build_task(experiment.task, load_tokenizer(folder / "model"))
    references = [pair.reference for pair in task.test]
    return [_study_row(options, *kind, references) for kind in kinds_of_runs(options)]


def _study_row(
    options: StudyOptions, agent: str, pairs: int, references: Sequence[str]
) -> StudyRow:
    seeds = range(options.seeds)
    folders = [folder_of(options, agent, pairs, seed) for seed in seeds]
    starts = [folder_of(options, START, pairs, seed) for seed in seeds if agent in STARTED]
    judged = [read_scores(folder) for folder in folders]
    outcomes = [read_outcome(folder) for folder in folders]
    seconds = [each.train_seconds for each in (*outcomes, *map(read_outcome, starts))]
    better = worse = 0
    for seed, each in enumerate(judged):
        baseline = folder_of(options, BASELINE, pairs, seed)
        if agent == BASELINE or not baseline.exists():
            continue
        other = read_scores(baseline)
        p_value = paired_bootstrap(other.hypotheses, each.hypotheses, references)
        better += p_value < SIGNIFICANCE_LEVEL and each.bleu > other.bleu
        worse += p_value < SIGNIFICANCE_LEVEL and each.bleu < other.bleu
    bleu = [each.bleu for each in judged]

    def mean(value: Callable[[ModelScores], float]) -> float:
        return statistics.mean(map(value, judged))

    return StudyRow(
        agent=agent,
        pairs=outcomes[0].train_pairs,
        bleu=statistics.mean(bleu),
        bleu_error=statistics.stdev(bleu) / len(bleu) ** 0.5 if len(bleu) > 1 else None,
        chrf=mean(lambda each: each.chrf),
        bleu_by_length=[
            None if None in column else statistics.mean(column)
            for column in zip(*(each.bleu_by_length for each in judged), strict=True)
        ],
        better=better,
        worse=worse,
        student_prefix_agreement=mean(lambda each: each.student_prefix_agreement),
        reference_prefix_agreement=mean(lambda each: each.reference_prefix_agreement),
        teacher_tokens=statistics.mean(each.teacher_tokens_queried for each in outcomes),
        train_seconds=sum(seconds) / len(folders),
    )


def study_cells(options: StudyOptions, row: StudyRow) -> list[str]:
    """A row as text, as `HEADINGS` says."""
    baseline = row.agent == BASELINE
    error = "" if row.bleu_error is None else f" ± {row.bleu_error:.1f}"
    return [
        row.agent + (" after mle" if row.agent in STARTED else ""),
        f"{row.bleu:.1f}{error}",
        f"{row.chrf:.1f}",
        "" if baseline else f"{row.better} / {row.worse} of {options.seeds}",
        f"{row.student_prefix_agreement:.1%}",
        f"{row.reference_prefix_agreement:.1%}",
        *("" if bleu is None else f"{bleu:.1f}" for bleu in row.bleu_by_length),
        f"{row.teacher_tokens / 1e6:.2f} M",
        f"{row.train_seconds:.0f}",
    ]


def _title(options: StudyOptions, pairs: int) -> str:
    return f"{pairs:,} pairs, {options.seeds} seed{'s' if options.seeds > 1 else ''}"


def markdown(options: StudyOptions, rows: Sequence[StudyRow]) -> str:
    """A table for each amount of training pairs."""
    lines = []
    for pairs in dict.fromkeys(row.pairs for row in rows):
        lines += [f"## {_title(options, pairs)}", ""]
        lines += [f"| {' | '.join(HEADINGS)} |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
        lines += [
            f"| {' | '.join(study_cells(options, row))} |" for row in rows if row.pairs == pairs
        ] + [""]
    return "\n".join(lines)


def show(options: StudyOptions, rows: Sequence[StudyRow]) -> None:
    """Print a table for each amount of training pairs."""
    output = Console()
    output.width = max(output.width, TABLE_WIDTH)  # a pipe would cut the columns
    for pairs in dict.fromkeys(row.pairs for row in rows):
        table = Table(title=_title(options, pairs))
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
        for row in rows:
            if row.pairs == pairs:
                table.add_row(*study_cells(options, row))
        output.print(table)


def draw_study(rows: Sequence[StudyRow], path: Path) -> None:
    """Plot BLEU against training pairs, with standard errors where there are several seeds."""
    from matplotlib.figure import Figure  # half a second that no other command shall wait for

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for agent, (color, marker) in SWEEP_STYLES.items():
        own = [row for row in rows if row.agent == agent]
        line = sorted((row.pairs, row.bleu, row.bleu_error or 0) for row in own)
        if line:
            pairs, bleu, error = zip(*line, strict=True)
            axes.errorbar(pairs, bleu, error, color=color, marker=marker, capsize=3, label=agent)
    axes.set_xscale("log")
    axes.set_xlabel("training pairs")
    axes.set_ylabel("BLEU on the test split")
    axes.legend()
    figure.savefig(path, dpi=150)
