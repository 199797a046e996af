"""Recipe of the paper's order: mle, seqkd, imitkd and imitkd_full, trained as long as the paper's.

Each seed draws other pairs. The learning rate of each agent is chosen on validation by short runs
of the first seed. The test split is scored once for each finished run.

Source: Lin et al. 2020, tables 2 and 3, arXiv:2009.07253.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_env.bounds import check_at_least
from textgen_env.generation.decoding import Sampling
from textgen_env.models.storage import load_tokenizer
from textgen_experiments.evaluation.scores import train_and_score
from textgen_experiments.recipes import configs
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.run_log import console
from textgen_experiments.runs.train import read_outcome

SHORT = 5  # runs that choose a learning rate have a fifth of the updates


@dataclass(frozen=True)
class PaperOrderOptions:
    """Train the paper's four agents as long as the paper does, and compare them on the test split.

    Attributes:
        output: folder of the runs and of the tables.
        seeds: runs of each agent, each with its own draw of the pairs.
        pairs: training pairs.
        updates: updates of students that begin with random weights, of 64 texts each.
        rates: learning rates to choose from, two or more.
        at_once: runs at the same time; one a core if not given.
    """

    output: Path = Path("runs/paper-order")
    seeds: int = 3
    pairs: int = 4000
    updates: int = 2500
    rates: tuple[float, ...] = (2e-3, 4e-3)
    at_once: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, seeds=1, pairs=1, updates=1, at_once=1)
        if not self.rates:
            raise ValueError("rates must hold at least one learning rate, got none")


def paper_agents() -> dict[str, Agent]:
    """Return the four agents by name, the slowest first, as the paper's IWSLT14 runs have them."""
    return {
        "imitkd_full": ImitKDFull(),
        "imitkd": ImitKD(sampling=Sampling(top_k=5)),
        "seqkd": SeqKD(),
        "mle": MLE(),
    }


def paper_order(options: PaperOrderOptions) -> None:
    """Choose the learning rates, then train and score all runs, the first seed first."""
    short = {folder: run for _, folder, run in _short_runs(options)}
    train_in_parallel(short, at_most=options.at_once)
    rates = chosen_rates(options)
    for agent, rate in rates.items():
        console.print(f"learning rate of {agent}: {rate:g}", markup=False)
    for seed in range(options.seeds):
        runs = order_runs(options, seed, rates)
        train_in_parallel(runs, train_and_score, options.at_once)


def order_runs(
    options: PaperOrderOptions, seed: int, rates: Mapping[str, float]
) -> dict[Path, Experiment]:
    """Return the runs of one seed by folder, with the learning rate of each agent."""
    return {
        options.output / "scratch" / f"{name}-{seed}": _run(options, agent, seed, rates[name])
        for name, agent in paper_agents().items()
    }


def chosen_rates(options: PaperOrderOptions) -> dict[str, float]:
    """Return the learning rate of each agent whose short run had the best validation BLEU."""
    best: dict[str, tuple[float, float]] = {}
    for name, folder, run in _short_runs(options):
        score = read_outcome(folder).validation_bleu, run.learner.learning_rate
        best[name] = max(best.get(name, score), score)
    return {name: rate for name, (_, rate) in best.items()}


def _short_runs(options: PaperOrderOptions) -> Iterator[tuple[str, Path, Experiment]]:
    """Yield agent, folder and experiment of each run that chooses a learning rate."""
    short = replace(options, updates=max(options.updates // SHORT, 1))
    for name, agent in paper_agents().items():
        for rate in options.rates:
            folder = options.output / "scratch" / f"{name}-rate-{rate:g}"
            yield name, folder, _run(short, agent, 0, rate)


def _run(options: PaperOrderOptions, agent: Agent, seed: int, rate: float) -> Experiment:
    return configs.paper_student(
        agent, seed, train_pairs=options.pairs, updates=options.updates, learning_rate=rate
    )
