"""Recipe of the curve of quality against speed: students of several sizes, trained alike.

Each learns by seqkd from the same texts of the teacher's, those of the shipped student, for the
same number of updates. All begin with layers of the teacher, but for the recurrent one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from textgen_agents.seqkd import SeqKD
from textgen_env.bounds import check_at_least
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_experiments.recipes import configs
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.train import PREPARED, Outcome, Show, train

DROPOUT = 0.1
COPIED = partial(TeacherLayers, dropout=DROPOUT)


@dataclass(frozen=True)
class SpeedCurveOptions:
    """Train students of several sizes alike, and draw their quality against their speed.

    Attributes:
        output: folder of the runs.
        texts: folder of a run of seqkd with the same sources, whose texts of the teacher are
            learned from if they are there: an hour saved.
        updates: of every student, 64 texts each.
        at_once: runs at the same time; one a core if not given.
    """

    output: Path = Path("runs/speed-curve")
    texts: Path = Path("runs/distill-verses/seqkd")
    updates: int = 1500
    at_once: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, updates=1, at_once=1)


def curve_runs(options: SpeedCurveOptions) -> dict[Path, Experiment]:
    """Return the run of each student by folder, the one that prepares the texts first."""
    distilled = partial(configs.distilled_student, SeqKD(), updates=options.updates)
    copied = partial(distilled, learning_rate=1e-3)
    students = {
        "6+2": copied(start=COPIED(encoder=6, decoder=2)),
        "3+3": copied(start=COPIED(encoder=3, decoder=3)),
        "3+2": copied(start=COPIED(encoder=3, decoder=2)),
        "2+2": copied(start=COPIED(encoder=2, decoder=2)),
        "1+2": copied(start=COPIED(encoder=1, decoder=2)),
        "3+2-ssru": copied(student=HybridConfig(), start=COPIED(encoder=3, decoder=2)),
        "recurrent": distilled(
            learning_rate=4e-3, student=RecurrentConfig(width=288, dropout=DROPOUT)
        ),
    }
    return {options.output / name: experiment for name, experiment in students.items()}


def train_curve(options: SpeedCurveOptions) -> Mapping[Path, Experiment]:
    """Train all students, and return their runs by folder."""
    runs = curve_runs(options)
    (first, experiment), *others = runs.items()
    texts = options.texts / PREPARED
    work = partial(train_on_texts, texts if texts.exists() else first / PREPARED)
    train_in_parallel({first: experiment}, work, options.at_once)
    train_in_parallel(dict(others), work, options.at_once)
    return runs


def train_on_texts(texts: Path, experiment: Experiment, folder: Path, show: Show) -> Outcome:
    """Train a run on the teacher's texts of another, if they are there."""
    return train(experiment, folder, show, texts)
