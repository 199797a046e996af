"""Recipe of summarization: a teacher, and the same small student trained by three agents."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from textgen_agents.imitkd import ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.descriptions import copy_share
from textgen_experiments.recipes import configs
from textgen_experiments.recipes.demo import experiments_by_name, train_and_compare
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.train import train_with_bar


@dataclass(frozen=True)
class SummarizeOptions:
    """Describe Wikipedia articles in a line: train a teacher and students, compare ROUGE and speed.

    Attributes:
        output: folder of the runs; the same command resumes runs that were stopped.
        seed: seed of every random choice.
    """

    output: Path = Path("runs/summarize")
    seed: int = 0


def summarize(options: SummarizeOptions) -> None:
    """Train the teacher, then the students in parallel; print and write results as the demo."""
    train_with_bar(configs.descriptions_teacher(options.seed), options.output / "teacher")
    teacher = options.output / "teacher" / "model"
    task = build_task(TASKS["descriptions"], load_tokenizer(teacher))
    share = copy_share(task.test)
    setting = (
        f"the teacher has seen {len(task.train):,} pairs, the students "
        f"{configs.DESCRIPTIONS_PAIRS:,}; mle_all_pairs has seen all and no teacher; of the "
        f"descriptions {share.whole:.0%} stand in their sources, of their words {share.words:.0%}"
    )
    train_and_compare(summarize_experiments(teacher, options.seed), options.output, setting)


def summarize_experiments(teacher: Path, seed: int) -> dict[str, Experiment]:
    """Return the students by name: same pairs, same updates, and one that sees all pairs."""
    student = partial(configs.descriptions_student, teacher=teacher, seed=seed)
    return experiments_by_name((MLE(), SeqKD(), ImitKDFull()), student)
