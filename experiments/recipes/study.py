"""Comparison of the algorithms on real text over several seeds, with tables and a plot.

All runs have the same teacher, student, pairs and number of updates. Where the paper begins with a
trained student, the first half of the updates is mle's. The teacher's texts do not depend on the
seed and are written for the first one alone. The test split is scored once, after all choices were
made on validation. Scores are kept in the folder of the run, so a stopped study can be resumed.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from textgen_agents import AGENTS
from textgen_agents.evaluation.bleu_metric import bleu_signature
from textgen_agents.evaluation.quality import LENGTH_LIMITS, paired_bootstrap
from textgen_agents.mle import MLE
from textgen_env.bounds import check_at_least
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks.task import TextTask, references_of
from textgen_experiments.evaluation.scores import ModelScores, read_scores, train_and_score
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.recipes import configs
from textgen_experiments.runs.choices import several_of
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import write_text
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.run_log import console
from textgen_experiments.runs.train import PREPARED, Outcome, Show, read_outcome

BASELINE = "seqkd"
DATA_SWEEP_AGENTS = ("mle", "seqkd", "imitkd_full")  # compared over amounts of data
START = "start"  # in place of an agent's name: mle for the first half of the updates
SWEEP_STYLES = {"mle": ("#D55E00", "s"), "seqkd": ("#009E73", "^"), "imitkd_full": ("#0072B2", "o")}
"""Agent -> color and marker; the colors are Okabe and Ito's, for all kinds of color vision."""
SIGNIFICANCE_LEVEL = 0.05
HEADINGS = [
    "agent",
    "BLEU",
    "chrF",
    f"better / worse than {BASELINE}",
    "like the teacher on own prefixes",
    "on references",
    *(f"BLEU to {limit} words" for limit in LENGTH_LIMITS),
    "longer",
    "teacher tokens",
    "seconds",
]


@dataclass(frozen=True)
class StudyOptions:
    """Train agents with several seeds on verses, and compare them on the test split.

    Attributes:
        output: folder of the runs, `results.json`, `tables.md` and `pairs.png`.
        agents: agents to compare; all of them if none is named.
        seeds: runs of each agent; a single one gives no standard error.
        updates: all updates of every student, at least 2.
        pairs: training pairs of the table.
        more_pairs: further amounts, for mle, seqkd and imitkd_full; 0 for all pairs.
    """

    output: Path = Path("runs/study")
    agents: Annotated[tuple[str, ...], several_of(AGENTS)] = field(
        default_factory=lambda: tuple(AGENTS)
    )
    seeds: int = 3
    updates: int = 500
    pairs: int = 2000
    more_pairs: tuple[int, ...] = (500, 8000, 0)

    def __post_init__(self) -> None:
        check_at_least(self, seeds=1, updates=2, pairs=1)
        if any(pairs < 0 for pairs in self.more_pairs):
            raise ValueError(
                f"more_pairs must be at least 0 each, got {self.more_pairs}; 0 is all pairs"
            )


@dataclass(frozen=True)
class StudyRow:
    """Results of one agent with one number of pairs, over all seeds.

    Attributes:
        agent: name of the agent.
        pairs: training pairs.
        bleu: mean over seeds.
        bleu_error: standard error of the mean; None for one seed.
        chrf: mean over seeds.
        bleu_by_length: means over seeds, as in `ModelScores`.
        better: seeds in which it is significantly better than seqkd (paired bootstrap).
        worse: seeds in which it is significantly worse.
        student_prefix_agreement: mean over seeds, in [0, 1].
        reference_prefix_agreement: mean over seeds, in [0, 1].
        teacher_tokens: states at which the teacher was queried, mean over seeds.
        train_seconds: mean over seeds, on one core of the machine; mle's first half included.
        signature: sacreBLEU's signature of `bleu`.
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
    signature: str


def study(options: StudyOptions) -> None:
    """Train and score all runs; print tables, write `results.json`, `tables.md`, `pairs.png`."""
    runs = study_runs(options)
    train_in_parallel(starting_runs(options))
    train_in_parallel(runs, train_and_score_one)
    rows = study_rows(options, runs)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"seeds": options.seeds, "rows": [asdict(row) for row in rows]}
    write_text(options.output / "results.json", json.dumps(content, indent=2) + "\n")
    write_text(options.output / "tables.md", markdown(options, rows))
    draw_study(rows, options.output / "pairs.png")
    print_study(options, rows)
    console.print(f"written to {options.output}", soft_wrap=True)


def agents_and_pairs(options: StudyOptions) -> list[tuple[str, int]]:
    """Return agent and pairs of every row; those of the table come first."""
    swept = [agent for agent in DATA_SWEEP_AGENTS if agent in options.agents]
    return [(agent, options.pairs) for agent in options.agents] + [
        (agent, pairs) for pairs in options.more_pairs for agent in swept
    ]


def study_runs(options: StudyOptions) -> dict[Path, Experiment]:
    """Return every run by its folder: seed after seed, the slowest runs of each seed first."""
    return {
        folder_of(options, agent, pairs, seed): _study_run(options, agent, pairs, seed)
        for seed in range(options.seeds)
        for agent, pairs in reversed(agents_and_pairs(options))
    }


def starting_runs(options: StudyOptions) -> dict[Path, Experiment]:
    """Return the runs of mle whose students other agents start from, by folder."""
    started = any(AGENTS[agent].expects_trained_student for agent in options.agents)
    seeds = range(options.seeds) if started else ()
    return {
        folder_of(options, START, options.pairs, seed): _halve_updates(
            configs.study_student(MLE(), seed, options.pairs or None, options.updates)
        )
        for seed in seeds
    }


def _study_run(options: StudyOptions, agent: str, pairs: int, seed: int) -> Experiment:
    """Return the run of `agent`, started from a trained student where its paper does so."""
    experiment = configs.study_student(AGENTS[agent](), seed, pairs or None, options.updates)
    if not AGENTS[agent].expects_trained_student:
        return experiment
    half = _halve_updates(experiment)
    share = AGENTS[agent].learning_rate_factor
    return replace(
        half,
        student_init=folder_of(options, START, pairs, seed) / "model",
        learner=replace(half.learner, learning_rate=share * half.learner.learning_rate),
    )


def _halve_updates(experiment: Experiment) -> Experiment:
    """Return the experiment with half of the updates, and as many evaluations."""
    learner = experiment.learner
    half = replace(
        learner,
        updates=learner.updates // 2,
        warmup=learner.warmup // 2,
        evaluate_every=max(learner.evaluate_every // 2, 1),
    )
    return replace(experiment, learner=half)


def folder_of(options: StudyOptions, agent: str, pairs: int, seed: int) -> Path:
    """Return the folder of a run; 0 pairs stand for all."""
    return options.output / f"{agent}-{pairs or 'all'}-{seed}"


def train_and_score_one(experiment: Experiment, folder: Path, show: Show) -> Outcome:
    """Train and score a run, with the teacher's texts of the first seed if they exist.

    These texts do not depend on the seed. Teacher tokens and seconds of the run count them anyway.
    """
    first = folder.with_name(f"{folder.name.rsplit('-', 1)[0]}-0") / PREPARED
    return train_and_score(experiment, folder, show, first)


def study_rows(options: StudyOptions, runs: dict[Path, Experiment]) -> list[StudyRow]:
    """Return a row for each agent and amount of data."""
    folder, experiment = next(iter(runs.items()))
    task = build_task(experiment.task, load_tokenizer(folder / "model"))
    return [_study_row(options, *each, task) for each in agents_and_pairs(options)]


def _study_row(options: StudyOptions, agent: str, pairs: int, task: TextTask) -> StudyRow:
    references, language = references_of(task.test), task.target_language
    seeds = range(options.seeds)
    folders = [folder_of(options, agent, pairs, seed) for seed in seeds]
    starts = [
        folder_of(options, START, pairs, seed)
        for seed in seeds
        if AGENTS[agent].expects_trained_student
    ]
    judged = [read_scores(folder) for folder in folders]
    outcomes = [read_outcome(folder) for folder in folders]
    seconds = [each.train_seconds for each in (*outcomes, *map(read_outcome, starts))]
    better = worse = 0
    for seed, each in enumerate(judged):
        baseline = folder_of(options, BASELINE, pairs, seed)
        if agent == BASELINE or not baseline.exists():
            continue
        other = read_scores(baseline)
        p_value = paired_bootstrap(other.hypotheses, each.hypotheses, references, language)
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
        signature=judged[0].signature or bleu_signature(language),
    )


def study_cells(options: StudyOptions, row: StudyRow) -> list[str]:
    """Return the cells of a row, in the order of `HEADINGS`."""
    baseline = row.agent == BASELINE
    error = "" if row.bleu_error is None else f" ± {row.bleu_error:.1f}"
    return [
        row.agent + (" after mle" if AGENTS[row.agent].expects_trained_student else ""),
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
    """Return a Markdown table for each amount of training pairs."""
    lines = []
    for pairs in dict.fromkeys(row.pairs for row in rows):
        lines += [f"## {_title(options, pairs)}", ""]
        lines += [f"| {' | '.join(HEADINGS)} |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
        lines += [
            f"| {' | '.join(study_cells(options, row))} |" for row in rows if row.pairs == pairs
        ] + [""]
    return "\n".join([*lines, f"BLEU: `{rows[0].signature}`", ""])


def print_study(options: StudyOptions, rows: Sequence[StudyRow]) -> None:
    """Print a table for each amount of training pairs."""
    for pairs in dict.fromkeys(row.pairs for row in rows):
        cells = [study_cells(options, row) for row in rows if row.pairs == pairs]
        caption = f"BLEU: {rows[0].signature}"
        print_table(_title(options, pairs), HEADINGS, cells, caption=caption)


def draw_study(rows: Sequence[StudyRow], path: Path) -> None:
    """Plot BLEU against training pairs, with standard errors where there are several seeds."""
    from matplotlib.figure import Figure  # slow to import, and other commands do not need it

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
