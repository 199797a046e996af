"""A run's experiment: its task, models, agent and learner as one frozen record."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from textgen_agents import AGENTS
from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.training.learner import LearnerConfig
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.models.huggingface.model import HuggingFaceConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.descriptions import DescriptionsConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tasks.verses import VersesConfig

VERSES_TEACHER = Path(__file__).parents[1] / "teachers" / "verses"

TaskConfig = VersesConfig | DescriptionsConfig | TextFilesConfig | HubConfig | CopyConfig
ModelConfig = RecurrentConfig | TransformerConfig | HuggingFaceConfig

TASKS: dict[str, TaskConfig] = {
    "verses": VersesConfig(max_tokens=64),
    "descriptions": DescriptionsConfig(),
    "copy": CopyConfig(),
    "text": TextFilesConfig(train=Path("train.tsv")),
    "hub": HubConfig(path="data"),
}
STUDENTS: dict[str, ModelConfig] = {
    "recurrent": RecurrentConfig(),
    "transformer": TransformerConfig(),
}


@dataclass(frozen=True)
class Experiment:
    """Everything that a training run depends on.

    Attributes:
        task: where the text comes from.
        teacher: folder of the teacher, or the name of one on the hub; its tokenizer is the
            student's too, unless the student brings one. None for no teacher.
        server: where the teacher is if it is on a server; None if it is not.
        student: size of the student; its vocabulary is the tokenizer's.
        student_init: folder of the model whose weights, and thus size, the student starts from, or
            the name of one on the hub; None for random weights.
        student_tokenizer: folder or name of a model whose tokenizer the student has; None for that
            of `student_init` or else the teacher's.
        lora_rank: of adapters that are trained in place of a pretrained student's weights; None to
            train all weights.
        agent: the algorithm.
        learner: how it trains.
        train_pairs: training pairs the student sees, chosen by a hash of the text; None for all.
        validation_pairs: validation pairs, the first ones, that the best weights are chosen by.
        precision: of autocast and of the models that only act; None for the one measured faster.
    """

    task: TaskConfig = field(default_factory=VersesConfig)
    teacher: Path | None = VERSES_TEACHER
    server: RemoteTeacher | None = None
    student: ModelConfig = field(default_factory=RecurrentConfig)
    student_init: Path | None = None
    student_tokenizer: Path | None = None
    lora_rank: int | None = None
    agent: Agent = field(default_factory=ImitKDFull)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    train_pairs: int | None = None
    validation_pairs: int = 300
    precision: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None and self.server is not None:
            raise ValueError(
                f"teacher and server must not both be given, got {self.teacher} and "
                f"{self.server.url}: set teacher to None"
            )


def agent_name(agent: Agent) -> str:
    """The agent's name in `AGENTS`."""
    return next(name for name, kind in AGENTS.items() if kind is type(agent))
