"""The main job: the same small student, trained four ways, beside its teacher."""

from dataclasses import dataclass
from pathlib import Path

from agents.imitkd import ImitKD
from agents.imitkd_full import ImitKDFull
from agents.mle import MLE
from agents.seqkd import SeqKD
from experiments import configs
from experiments.configs import Experiment
from experiments.evaluate import judge_runs
from experiments.logging import console
from experiments.report import ReportOptions, report
from experiments.results import RESULTS, show, write_results
from experiments.side_by_side import train_side_by_side

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
    runs = {
        options.output / name: experiment
        for name, experiment in demo_experiments(options.seed).items()
    }
    train_side_by_side(dict(reversed(runs.items())))  # the last ones take longest
    task, rows = judge_runs(list(runs))
    show(rows, f"{SETTING}; {len(task.test)} test verses")
    write_results(options.output / RESULTS, task, rows)
    console.print(f"written to {options.output / RESULTS}")
    report(ReportOptions(tuple(runs), options.output / "report.html"))


def demo_experiments(seed: int) -> dict[str, Experiment]:
    """The demo's students by name: same pairs, same updates, and one that sees all pairs."""
    agents = MLE(), SeqKD(), ImitKD(), ImitKDFull()
    return {configs.agent_name(agent): configs.demo(agent, seed) for agent in agents} | {
        "mle_all_pairs": configs.demo(MLE(), seed, train_pairs=None)
    }
