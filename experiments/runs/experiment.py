"""A run's experiment: its task, models, agent and learner as one frozen record."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from textgen_agents import AGENTS
from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.training.learner import LearnerConfig
from textgen_env.bounds import check_above, check_at_least
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.models import STUDENTS
from textgen_env.models.config import ModelConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import TaskConfig
from textgen_env.tasks.verses import VersesConfig

VERSES_TEACHER = Path(__file__).parents[1] / "teachers" / "verses"
VERSES_STUDENT = Path(__file__).parents[1] / "students" / "verses"
Metric = Literal["bleu", "chrf", "exact", "reference-loss"]
"""Names of the scores on validation to choose from."""


@dataclass(frozen=True)
class Experiment:
    """Everything that a training run depends on.

    Attributes:
        task: source of the text.
        teacher: folder of the teacher, or the name of one on the hub; its tokenizer is the
            student's too, unless the student brings one. None for no teacher.
        further_teachers: folders or names of more teachers with the same tokenizer, which form a
            mixture with `teacher` whose probabilities are the mean of theirs; none for no mixture.
        server: address of the teacher if it is on a server; None if it is not.
        keyed_teachers: keys and folders of several teachers with one tokenizer, in place of
            `teacher`; a pair's is the one whose key stands in front of what the expert reads.
        black_box_texts: file of pairs of a training source and a text that a closed model wrote for
            it, any number for a source, which complete the distributions of `teacher`, its proxy;
            None for none.
        proxy_weight: number of such texts that the proxy's word is worth, above 0.
        student: size of the student; its vocabulary is the tokenizer's.
        student_init: folder of the model whose weights, and thus size, the student starts from, or
            the name of one on the hub; None for random weights.
        student_from_teacher: layers of the teacher that the student starts from, whose widths and
            vocabulary are then the student's; None for a student of the size above.
        student_tokenizer: folder or name of a model whose tokenizer the student has; None for that
            of `student_init` or else the teacher's.
        lora_rank: of adapters that are trained in place of a pretrained student's weights; None to
            train all weights.
        agent: the algorithm.
        learner: settings of the training loop.
        train_pairs: training pairs the student sees, chosen by a hash of the text; None for all.
            Only those with references count.
        train_draw: number of the draw of these pairs; another one chooses other pairs.
        train_sources: the same of the training sources without references; 0 for none.
        validation_pairs: validation pairs, the first ones, that the best weights are chosen by.
        metric: score on validation by which the best weights are kept; of weights with equal scores
            those with the lower loss on the references are.
        diagnostics: ask the teacher about the first validation pairs at each evaluation, for the
            diagnostics of exposure bias.
        precision: of autocast and of the models that only act; None for the one measured faster.
        kept_labels_gb: most gigabytes on disk, while the run lasts, for a local teacher's answers
            about texts of the data, so that it is asked about each once and not in every epoch; at
            least 0, which keeps none.
        keep_checkpoint: keep the last checkpoint of the finished run, so that it can go on to more
            updates.
    """

    task: TaskConfig = field(default_factory=VersesConfig)
    teacher: Path | None = VERSES_TEACHER
    further_teachers: tuple[Path, ...] = ()
    server: RemoteTeacher | None = None
    keyed_teachers: tuple[tuple[str, Path], ...] = ()
    black_box_texts: Path | None = None
    proxy_weight: float = 5.0
    student: ModelConfig = field(default_factory=RecurrentConfig)
    student_init: Path | None = None
    student_from_teacher: TeacherLayers | None = None
    student_tokenizer: Path | None = None
    lora_rank: int | None = None
    agent: Agent = field(default_factory=ImitKDFull)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    train_pairs: int | None = None
    train_draw: int = 0
    train_sources: int | None = None
    validation_pairs: int = 300
    metric: Metric = "bleu"
    diagnostics: bool = True
    precision: Literal["float32", "bfloat16"] | None = None
    kept_labels_gb: float = 1.0
    keep_checkpoint: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, lora_rank=1, train_pairs=1, validation_pairs=1)
        check_above(self, proxy_weight=0)
        check_at_least(self, train_sources=0, train_draw=0, kept_labels_gb=0)
        if self.teacher is not None and self.server is not None:
            raise ValueError(
                f"teacher and server must not both be given, got {self.teacher} and "
                f"{self.server.url}: set teacher to None"
            )
        if self.keyed_teachers and (self.teacher or self.server):
            raise ValueError(
                "keyed_teachers must be left out beside another teacher, got "
                f"{', '.join(key for key, _ in self.keyed_teachers)}: set teacher to None"
            )
        if self.further_teachers and self.teacher is None:
            raise ValueError(
                "further_teachers must be none where there is no teacher on this disk, got "
                f"{', '.join(map(str, self.further_teachers))}: give teacher"
            )
        if self.black_box_texts is not None and self.teacher is None:
            raise ValueError(
                "teacher must be a model on this disk beside black_box_texts, which complete its "
                f"distributions, got None with {self.black_box_texts}: give teacher"
            )
        if self.student_init is not None and self.student_from_teacher is not None:
            raise ValueError(
                "student_init and student_from_teacher must not both be given, got "
                f"{self.student_init} and {self.student_from_teacher}: leave one out"
            )
        if self.metric not in get_args(Metric):
            raise ValueError(
                f"metric must be one of {', '.join(get_args(Metric))}, got {self.metric!r}"
            )


def agent_name(agent: Agent) -> str:
    """Return the agent's name in `AGENTS`.

    Raises:
        RegistryError: it is not registered.
    """
    return AGENTS.name_of(agent)


def plugins_of(experiment: Experiment) -> list[str]:
    """Return the plugins and distributions that the parts of `experiment` come from."""
    origins = {
        AGENTS.origin_of(experiment.agent),
        TASKS.origin_of(experiment.task),
        STUDENTS.origin_of(experiment.student),
    }
    return sorted(origin for origin in origins if origin is not None)
