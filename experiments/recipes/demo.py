"""Recipe of the demo: one small student, trained by four agents, beside its teacher.

The students are their teacher's embeddings and encoder, which stay as they are, and two of its six
decoder layers, which are trained. They have few pairs with references; imitkd and imitkd_full learn
from further sources without references too, for which seqkd would need the teacher's texts in
advance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_experiments.evaluation.evaluate import EvaluateOptions, evaluate_runs
from textgen_experiments.evaluation.results import (
    RESULTS,
    ResultRow,
    print_results,
    write_results,
)
from textgen_experiments.recipes import configs
from textgen_experiments.reporting.report import ReportOptions, report
from textgen_experiments.runs.experiment import Experiment, agent_name
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.progress import tell

SETTING = (
    "students have 6 + 2 of the teacher's 6 + 6 layers and see 4,000 pairs; imitkd and imitkd_full "
    "read further sources; mle_all_pairs has seen all pairs and no teacher"
)
QUICK_ROUNDS = 2  # measurements of speed in the demo
QUICK_SENTENCES = 12  # sentences that its report shows token by token


@dataclass(frozen=True)
class DemoOptions:
    """Train five small students and compare them with their teacher: quality beside speed.

    Attributes:
        output: folder of the runs; the same command resumes runs that were stopped.
        seed: seed of every random choice.
        thorough: also compute the exposure-bias diagnostics and show more sentences, in minutes.
    """

    output: Path = Path("runs/demo")
    seed: int = 0
    thorough: bool = False


def demo(options: DemoOptions) -> None:
    """Train, evaluate, print the table, write `results.json` and `report.html`."""
    tell("five students, their scores and a report: about five minutes on two cores")
    rows = train_and_compare(
        demo_experiments(options.seed),
        options.output,
        SETTING,
        thorough=options.thorough,
        shipped=configs.shipped_students(),
    )
    trained = [row for row in rows if (options.output / row.model).is_dir()]
    best = options.output / max(trained, key=lambda row: row.quality.bleu).model
    tell(
        f"best student: {best}\n"
        f"translate with it: echo 'Im Anfang schuf Gott den Himmel.' | textgen generate {best}\n"
        f"look at the runs: open {options.output / 'report.html'}, or tensorboard --logdir "
        f"{options.output}",
    )


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


def train_and_compare(
    experiments: Mapping[str, Experiment],
    output: Path,
    setting: str,
    *,
    thorough: bool = True,
    shipped: Mapping[str, Path] | None = None,
) -> list[ResultRow]:
    """Train the experiments, score them on their test split, print and write the results.

    Args:
        experiments: experiments of one task and teacher, by name.
        output: folder of the runs, of `results.json` and of `report.html`.
        setting: description of the experiments in the table's title.
        thorough: whether to compute the exposure-bias diagnostics.
        shipped: folders of models of the project's own for the same task, by name.

    Returns:
        The rows of the table.
    """
    runs = {output / name: experiment for name, experiment in experiments.items()}
    longest_first = sorted(runs.items(), key=lambda run: not run[1].agent.needs_expert)
    train_in_parallel(dict(longest_first))
    options = EvaluateOptions(tuple(runs), beam_size=1, teacher_precision="float32")
    page = ReportOptions(tuple(runs), output / "report.html")
    if not thorough:
        options = replace(options, rounds=QUICK_ROUNDS, diagnostics=False)
        page = ReportOptions(tuple(runs), output / "report.html", QUICK_SENTENCES)
    task, rows, _ = evaluate_runs(options, shipped)
    print_results(rows, f"{setting}; {len(task.test)} test pairs")
    write_results(output / RESULTS, task, rows)
    tell(f"written to {output / RESULTS}")
    report(page)
    return rows
