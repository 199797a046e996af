"""Summarization: a teacher of its own, and the same small student, trained three ways from it."""

from dataclasses import dataclass
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.descriptions import copy_share
from textgen_experiments.recipes import configs
from textgen_experiments.recipes.demo import train_and_compare
from textgen_experiments.runs.experiment import Experiment, agent_name
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.train import train_with_bar


@dataclass(frozen=True)
class SummarizeOptions:
    """Describe Wikipedia articles in a line: train a teacher and students, compare ROUGE and speed.

    Attributes:
        output: folder of the runs; what was stopped goes on where it was.
        seed: of every random choice.
    """

    output: Path = Path("runs/summarize")
    seed: int = 0


def summarize(options: SummarizeOptions) -> None:
    """Train the teacher, then the students side by side; print and write as the demo does."""
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
    """The students by name: same pairs, same updates, and one that sees all pairs."""
    agents: tuple[Agent, ...] = MLE(), SeqKD(), ImitKDFull()
    return {
        agent_name(agent): configs.descriptions_student(agent, teacher, seed) for agent in agents
    } | {
        "mle_all_pairs": configs.descriptions_student(MLE(), teacher, seed, train_pairs=None),
    }
