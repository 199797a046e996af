"""Recipe of the shipped student: sources by the ten thousand, the teacher's beams, long training.

The student begins with layers of its teacher. It first learns from the texts that the teacher finds
by beam search for every source there is, with references or without (seqkd), then on prefixes of
its own (imitkd_star). Both runs can be resumed.
"""

from dataclasses import dataclass
from pathlib import Path

from textgen_agents.imitkd import ImitKDStar
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.seqkd import SeqKD
from textgen_env.bounds import check_at_least
from textgen_experiments.recipes import configs
from textgen_experiments.runs.run_log import console
from textgen_experiments.runs.train import train_with_bar


@dataclass(frozen=True)
class DistillVersesOptions:
    """Train the German-English student that comes with the project; takes hours, resumable.

    Attributes:
        output: folder of the runs.
        updates: updates on the teacher's texts, of 64 texts each.
        own_updates: updates on prefixes of the student's own after them.
    """

    output: Path = Path("runs/distill-verses")
    updates: int = 2500
    own_updates: int = 300

    def __post_init__(self) -> None:
        check_at_least(self, updates=1, own_updates=1)


def distill_verses(options: DistillVersesOptions) -> None:
    """Train the student in two runs."""
    first, second = options.output / "seqkd", options.output / "imitkd_star"
    train_with_bar(
        configs.distilled_student(SeqKD(), updates=options.updates, learning_rate=1e-3), first
    )
    train_with_bar(
        configs.distilled_student(
            ImitKDStar(beta=Constant(0.5)),
            updates=options.own_updates,
            learning_rate=2e-4,
            start=first / "model",
        ),
        second,
    )
    console.print(f"the student is in {second / 'model'}", soft_wrap=True)
