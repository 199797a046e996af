"""Recipe of the demo: the same small student, trained by four agents, beside its teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_experiments.evaluation.evaluate import evaluate_runs
from textgen_experiments.evaluation.results import RESULTS, print_results, write_results
from textgen_experiments.recipes import configs
from textgen_experiments.reporting.report import ReportOptions, report
from textgen_experiments.runs.experiment import Experiment, agent_name
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.run_log import console

SETTING = (
    "the teacher has seen everything, the students 4,000 pairs; mle_all_pairs has seen all pairs "
    "and no teacher"
)


@dataclass(frozen=True)
class DemoOptions:
    """Train one small student four ways and compare it with its teacher: quality beside speed.

    Attributes:
        output: folder of the runs; the same command resumes runs that were stopped.
        seed: seed of every random choice.
    """

    output: Path = Path("runs/demo")
    seed: int = 0


def demo(options: DemoOptions) -> None:
    """Train, evaluate, print the table, write `results.json` and `report.html`."""
    train_and_compare(demo_experiments(options.seed), options.output, SETTING)


def demo_experiments(seed: int) -> dict[str, Experiment]:
    """Return the students by name: same pairs, same updates, and one that sees all pairs."""
    agents = MLE(), SeqKD(), ImitKD(), ImitKDFull()
    return experiments_by_name(agents, partial(configs.verses_student, seed=seed))


def experiments_by_name(
    agents: Sequence[Agent], student: Callable[..., Experiment]
) -> dict[str, Experiment]:
    """Return an experiment for each agent, and one of mle on all pairs.

    Args:
        agents: agents whose students see the same pairs.
        student: function of an agent, and of `train_pairs` where None stands for all pairs.
    """
    return {agent_name(agent): student(agent) for agent in agents} | {
        "mle_all_pairs": student(MLE(), train_pairs=None)
    }


def train_and_compare(experiments: Mapping[str, Experiment], output: Path, setting: str) -> None:
    """Train the experiments, score them on their test split, print and write the results.

    Args:
        experiments: experiments of one task and teacher, by name, the longest last.
        output: folder of the runs, of `results.json` and of `report.html`.
        setting: description of the experiments in the table's title.
    """
    runs = {output / name: experiment for name, experiment in experiments.items()}
    train_in_parallel(dict(reversed(runs.items())))
    task, rows = evaluate_runs(list(runs))
    print_results(rows, f"{setting}; {len(task.test)} test pairs")
    write_results(output / RESULTS, task, rows)
    console.print(f"written to {output / RESULTS}", soft_wrap=True)
    report(ReportOptions(tuple(runs), output / "report.html"))
