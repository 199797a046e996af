"""Recipe of the paper's order: mle, seqkd, imitkd and imitkd_full, trained as long as the paper's.

There are three settings: students with random weights, students that begin with layers of their
teacher, and students with random weights of a teacher that went on without label smoothing. Each
seed draws other pairs. The learning rate of each agent is chosen on validation by short runs of the
first seed. The test split is scored once for each finished run.

Source: Lin et al. 2020, tables 2 and 3, arXiv:2009.07253.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_env.bounds import check_at_least
from textgen_env.generation.sampling import Sampling
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
from textgen_experiments.runs.experiment import VERSES_TEACHER, Experiment
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.train import train_with_bar

SCRATCH, COPIED, UNSMOOTHED = "scratch", "copied", "unsmoothed"
SETTINGS = {
    SCRATCH: "from random weights",
    COPIED: "from the teacher's layers",
    UNSMOOTHED: "from random weights, the teacher without label smoothing",
}
"""Name of a setting -> its title."""
SHORT = 10  # runs that choose a learning rate have a tenth of the updates


@dataclass(frozen=True)
class PaperOrderOptions:
    """Train the paper's four agents as long as the paper does, and compare them on the test split.

    Attributes:
        output: folder of the runs, `results.json` and `tables.md`.
        settings: what the students begin with, and which teacher they have.
        seeds: runs of each agent, each with its own draw of the pairs; the unsmoothed teacher's
            students have one.
        pairs: training pairs.
        updates: updates of students that begin with random weights, of 64 texts each.
        copied_updates: updates of students that begin with their teacher's layers.
        rates: learning rates to choose from, for random weights.
        copied_rates: learning rates to choose from, for the teacher's layers.
        at_once: runs at the same time; one a core if not given.
    """

    output: Path = Path("runs/paper-order")
    settings: Annotated[tuple[str, ...], several_of(SETTINGS)] = (SCRATCH, COPIED, UNSMOOTHED)
    seeds: int = 3
    pairs: int = 4000
    updates: int = 2500
    copied_updates: int = 1000
    rates: tuple[float, ...] = (2e-3, 4e-3)
    copied_rates: tuple[float, ...] = (5e-4, 1e-3)
    at_once: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, seeds=1, pairs=1, updates=1, copied_updates=1, at_once=1)
        if not self.rates or not self.copied_rates:
            raise ValueError("rates and copied_rates must hold a learning rate each, got none")

    def rates_of(self, setting: str) -> tuple[float, ...]:
        """Return the learning rates that a setting chooses from."""
        return self.copied_rates if setting == COPIED else self.rates

    def seeds_of(self, setting: str) -> range:
        """Return the seeds of a setting."""
        return range(1 if setting == UNSMOOTHED else self.seeds)


def paper_agents() -> dict[str, Agent]:
    """Return the four agents by name, the slowest first, as the paper's IWSLT14 runs have them."""
    return {
        "imitkd_full": ImitKDFull(),
        "imitkd": ImitKD(sampling=Sampling(top_k=5)),
        "seqkd": SeqKD(),
        "mle": MLE(),
    }


def paper_order(options: PaperOrderOptions) -> None:
    """Choose the learning rates, train and score all runs, then print and write the tables.

    The first seed of every setting comes before the second of any.
    """
    if UNSMOOTHED in options.settings:
        train_with_bar(configs.unsmoothed_teacher(), options.output / "teacher")
    for seed in range(options.seeds):
        for setting in options.settings:
            if seed in options.seeds_of(setting):
                rates = _choose_rates(options, setting)
                runs = order_runs(options, setting, seed, rates)
                train_in_parallel(runs, train_and_score, options.at_once)
    _write_tables(options)


def order_runs(
    options: PaperOrderOptions, setting: str, seed: int, rates: Mapping[str, float]
) -> dict[Path, Experiment]:
    """Return a seed's runs of a setting by folder, with the learning rate of each agent."""
    return {
        options.output / setting / f"{name}-{seed}": order_run(
            options, setting, agent, seed, rates[name]
        )
        for name, agent in paper_agents().items()
    }


def order_run(
    options: PaperOrderOptions, setting: str, agent: Agent, seed: int, rate: float
) -> Experiment:
    """Return the run of one agent with one seed and learning rate."""
    is_copied = setting == COPIED
    updates = options.copied_updates if is_copied else options.updates
    experiment = configs.paper_student(
        agent, seed, train_pairs=options.pairs, updates=updates, learning_rate=rate
    )
    if is_copied:
        return configs.from_layers(experiment)
    teacher = VERSES_TEACHER if setting == SCRATCH else options.output / "teacher" / "model"
    return replace(experiment, teacher=teacher)


def _choose_rates(options: PaperOrderOptions, setting: str) -> dict[str, float]:
    """Return the learning rate of each agent whose short run had the best validation BLEU."""
    runs = [*_short_runs(options, setting)]
    train_in_parallel({folder: run for _, folder, run in runs}, at_most=options.at_once)
    best: dict[str, tuple[float, float]] = {}
    for name, folder, run in runs:
        score = read_outcome(folder).validation_bleu, run.learner.learning_rate
        best[name] = max(best.get(name, score), score)
    return {name: rate for name, (_, rate) in best.items()}


def _short_runs(options: PaperOrderOptions, setting: str) -> Iterator[tuple[str, Path, Experiment]]:
    """Yield agent, folder and experiment of each run that chooses a learning rate."""
    short = replace(
        options,
        updates=max(options.updates // SHORT, 1),
        copied_updates=max(options.copied_updates // SHORT, 1),
    )
    for name, agent in paper_agents().items():
        for rate in options.rates_of(setting):
            folder = options.output / setting / f"{name}-rate-{rate:g}"
            yield name, folder, order_run(short, setting, agent, 0, rate)


def _write_tables(options: PaperOrderOptions) -> None:
    """Print a table for each setting, and write `results.json` and `tables.md`."""
    rows = {setting: _setting_rows(options, setting) for setting in options.settings}
    titles = {SETTINGS[setting]: of_setting for setting, of_setting in rows.items()}
    content = {setting: [asdict(row) for row in rows[setting]] for setting in rows}
    write_seed_tables(options.output, titles, content)


def _setting_rows(options: PaperOrderOptions, setting: str) -> list[SeedRow]:
    """Return the rows of a setting, mle's first."""
    task = build_task(configs.paper_student(MLE(), 0).task, load_tokenizer(VERSES_TEACHER))

    def folders(name: str) -> list[Path]:
        return [options.output / setting / f"{name}-{seed}" for seed in options.seeds_of(setting)]

    names = reversed(paper_agents())
    return [seed_row(name, folders(name), folders(BASELINE), task) for name in names]
