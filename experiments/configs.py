"""Named configurations: what a run is made of, as frozen dataclasses that are also the options."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from agents import AGENTS
from agents.agent import Agent
from agents.bases import MixedByExample
from agents.imitkd_full import ImitKDFull
from agents.learner import LearnerConfig
from agents.mle import MLE
from agents.schedules import Linear
from textgen_env.models.huggingface_model import HuggingFaceConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.remote_teacher import RemoteTeacher
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.descriptions import DescriptionsConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tasks.verses import ELBERFELDER, SCHLACHTER, VersesConfig

VERSES_TEACHER = Path(__file__).parent / "teachers" / "verses"
DESCRIPTIONS_PAIRS = 2000  # that the students of `textgen summarize` see

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


def demo(agent: Agent, seed: int = 0, train_pairs: int | None = 4000) -> Experiment:
    """A small student on a few verse pairs: what `textgen demo` trains."""
    return Experiment(
        task=TASKS["verses"],
        agent=agent,
        learner=LearnerConfig(updates=1000, seed=seed),
        train_pairs=train_pairs,
    )


def study(agent: Agent, seed: int, train_pairs: int | None, updates: int) -> Experiment:
    """The demo in small: what `textgen study` trains of every agent.

    Beta falls along a line: with so few updates that is worth 0.8 BLEU to imitkd_full on
    validation (8.5 for 7.7 with 2,000 pairs and 500 updates), for it begins with the data longer.
    """
    if isinstance(agent, MixedByExample):
        agent = replace(agent, beta=Linear())
    experiment = demo(agent, seed, train_pairs)
    learner = replace(
        experiment.learner,
        updates=updates,
        batch_size=32,
        warmup=updates // 5,
        evaluate_every=max(updates // 4, 1),
    )
    return replace(experiment, learner=learner)


def verses_teacher(start_from: Path | None = None) -> Experiment:
    """The shipped teacher: two German versions, all lengths, all training chapters."""
    return Experiment(
        task=VersesConfig(
            source_versions=(ELBERFELDER, SCHLACHTER), max_train_words=None, max_tokens=128
        ),
        teacher=None,
        student=TransformerConfig(
            width=256,
            num_heads=4,
            feed_forward=640,
            num_encoder_layers=6,
            num_decoder_layers=6,
            dropout=0.2,
        ),
        student_init=start_from,
        agent=MLE(label_smoothing=0.1),
        learner=LearnerConfig(
            updates=6000,
            batch_size=80,
            learning_rate=1e-3,
            warmup=1000,
            decay=0.4,
            evaluate_every=500,
        ),
        validation_pairs=400,
    )


def descriptions_teacher(seed: int = 0) -> Experiment:
    """The teacher of `textgen summarize`: all training pairs."""
    return Experiment(
        task=TASKS["descriptions"],
        teacher=None,
        student=TransformerConfig(
            width=192, feed_forward=512, num_encoder_layers=2, num_decoder_layers=2, dropout=0.2
        ),
        agent=MLE(label_smoothing=0.1),
        learner=LearnerConfig(
            updates=2000, learning_rate=2e-3, warmup=300, decay=0.6, evaluate_every=250, seed=seed
        ),
        validation_pairs=500,
    )


def descriptions_student(
    agent: Agent, teacher: Path, seed: int = 0, train_pairs: int | None = DESCRIPTIONS_PAIRS
) -> Experiment:
    """A small student on a few descriptions: what `textgen summarize` trains."""
    return Experiment(
        task=TASKS["descriptions"],
        teacher=teacher,
        student=RecurrentConfig(dropout=0.3),
        agent=agent,
        learner=LearnerConfig(updates=1000, seed=seed),
        train_pairs=train_pairs,
        validation_pairs=500,
    )


def agent_name(agent: Agent) -> str:
    """The agent's name in `AGENTS`."""
    return next(name for name, kind in AGENTS.items() if kind is type(agent))
