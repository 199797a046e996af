"""Comparison of all algorithms on real text from one common start, over several seeds.

The start of a seed is a student from its teacher's layers, trained by seqkd until validation stands
still. Every agent goes on from it with the same pairs, updates and evaluations, at the learning
rate that its paper asks for. The test split is scored once, after all choices were made on
validation. Scores are kept in the folder of the run, so a stopped study can be resumed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from textgen_agents import AGENTS
from textgen_agents.seqkd import SeqKD
from textgen_env.bounds import check_at_least
from textgen_env.models.storage import load_tokenizer
from textgen_experiments.evaluation.scores import train_and_score
from textgen_experiments.recipes import configs
from textgen_experiments.recipes.seed_table import (
    BASELINE,
    SeedRow,
    seed_row,
    write_seed_tables,
)
from textgen_experiments.runs.choices import several_of
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.many_runs import PlanOptions, train_cells
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.plan import begin_plan
from textgen_experiments.runs.train import PREPARED, Show

START = "start"  # in place of an agent's name: the common start of a seed


def agents_of_one_teacher() -> tuple[str, ...]:
    """Return the names of the agents that learn from one teacher, which reads what they read."""
    return tuple(
        name for name, kind in AGENTS.items() if not (kind.needs_expert_view or kind.needs_mixture)
    )


@dataclass(frozen=True)
class StudyOptions:
    """Train agents with several seeds from one common start, and compare them on the test split.

    Attributes:
        output: folder of the runs, `results.json` and `tables.md`.
        agents: agents to compare; all of them if none is named, but those whose teacher must be a
            mixture, or must read another view than the student.
        seeds: runs of each agent; a single one gives no standard error.
        start_updates: updates of seqkd's that make the common start of a seed.
        updates: updates of every agent from there on.
        pairs: training pairs.
        plan: which of the runs are done, and where; the agents' wait for all starts.
    """

    output: Path = Path("runs/study")
    agents: Annotated[tuple[str, ...], several_of(AGENTS)] = field(
        default_factory=agents_of_one_teacher
    )
    seeds: int = 3
    start_updates: int = 600
    updates: int = 300
    pairs: int = 4000
    plan: Annotated[PlanOptions, tyro.conf.arg(name="")] = field(default_factory=PlanOptions)

    def __post_init__(self) -> None:
        check_at_least(self, seeds=1, start_updates=1, updates=1, pairs=1)


def study(options: StudyOptions) -> None:
    """Train and score all runs; print the table, write `results.json` and `tables.md`.

    With a shard or a cluster the table is that of the command which finds all runs done.

    Raises:
        PlanError: runs have failed, or have other settings than when the study was begun.
    """
    starts, runs = starting_runs(options), study_runs(options)
    begin_plan(options.output, {**starts, **runs})
    for cells, work in ((starts, train_and_score), (runs, train_and_score_one)):
        if not train_cells(options.output, cells, work, options.plan):
            return
    rows = study_rows(options)
    title = f"{options.pairs:,} pairs, {options.seeds} seed{'s' if options.seeds > 1 else ''}"
    content = {"seeds": options.seeds, "rows": [asdict(row) for row in rows]}
    write_seed_tables(options.output, {title: rows}, content, baseline_of(options))


def starting_runs(options: StudyOptions) -> dict[Path, Experiment]:
    """Return the run of each seed whose student the agents begin with, by folder."""
    return {
        folder_of(options, START, seed): configs.study_start(
            SeqKD(), seed, options.pairs, options.start_updates
        )
        for seed in range(options.seeds)
    }


def study_runs(options: StudyOptions) -> dict[Path, Experiment]:
    """Return every agent's runs by folder, seed after seed."""
    return {
        folder_of(options, agent, seed): configs.study_student(
            AGENTS[agent](),
            seed,
            options.pairs,
            options.updates,
            folder_of(options, START, seed) / "model",
        )
        for seed in range(options.seeds)
        for agent in options.agents
    }


def folder_of(options: StudyOptions, agent: str, seed: int) -> Path:
    """Return the folder of a run."""
    return options.output / f"{agent}-{seed}"


def train_and_score_one(experiment: Experiment, folder: Path, show: Show) -> Outcome:
    """Train and score a run; seqkd goes on with the teacher's texts that its start was trained on.

    Teacher tokens and seconds of the run count them anyway.
    """
    start = experiment.student_init
    assert start is not None, "every agent of a study has one"
    prepared = start.parent / PREPARED if experiment.agent == SeqKD() else None
    return train_and_score(experiment, folder, show, prepared)


def study_rows(options: StudyOptions) -> list[SeedRow]:
    """Return a row for the common start and for each agent."""
    experiment = next(iter(study_runs(options).values()))
    assert experiment.student_init is not None, "every agent of a study has one"
    task = build_task(experiment.task, load_tokenizer(experiment.student_init))

    def folders(name: str) -> Sequence[Path]:
        return [folder_of(options, name, seed) for seed in range(options.seeds)]

    names, baseline = [START, *options.agents], baseline_of(options)
    return [seed_row(name, folders(name), folders(baseline), task) for name in names]


def baseline_of(options: StudyOptions) -> str:
    """Return the name of what the agents are compared with: the start where seqkd takes no part."""
    return BASELINE if BASELINE in options.agents else START
