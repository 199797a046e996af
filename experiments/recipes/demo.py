"""The main job: the same small student, trained four ways, beside its teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
        output: folder of the runs; a demo that was stopped goes on where it was.
        seed: of every random choice.
    """

    output: Path = Path("runs/demo")
    seed: int = 0


def demo(options: DemoOptions) -> None:
    """Train, evaluate, print the table, write `results.json` and `report.html`."""
    train_and_compare(demo_experiments(options.seed), options.output, SETTING)


def demo_experiments(seed: int) -> dict[str, Experiment]:
    """The demo's students by name: same pairs, same updates, and one that sees all pairs."""
    agents = MLE(), SeqKD(), ImitKD(), ImitKDFull()
    return {agent_name(agent): configs.demo(agent, seed) for agent in agents} | {
        "mle_all_pairs": configs.demo(MLE(), seed, train_pairs=None)
    }


def train_and_compare(experiments: Mapping[str, Experiment], output: Path, setting: str) -> None:
    """Train all by name, judge them on their task's test split, print and write what was found.

    Args:
        experiments: of one task and teacher; those that take longest had best come last.
        output: folder of the runs, of `results.json` and of `report.html`.
        setting: what the table's title says of them.
    """
    runs = {output / name: experiment for name, experiment in experiments.items()}
    train_in_parallel(dict(reversed(runs.items())))
    task, rows = evaluate_runs(list(runs))
    print_results(rows, f"{setting}; {len(task.test)} test pairs")
    write_results(output / RESULTS, task, rows)
    console.print(f"written to {output / RESULTS}", soft_wrap=True, markup=False)
    report(ReportOptions(tuple(runs), output / "report.html"))
