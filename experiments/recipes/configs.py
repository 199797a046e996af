"""Named experiments: functions that return the configuration of a training."""

from dataclasses import replace
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.mle import MLE
from textgen_agents.training.learner import LearnerConfig
from textgen_env.models.config import ModelConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks import TASKS
from textgen_env.tasks.verses import ELBERFELDER, SCHLACHTER, VersesConfig
from textgen_experiments.runs.experiment import VERSES_STUDENT, VERSES_TEACHER, Experiment

DESCRIPTIONS_PAIRS = 2000  # training pairs of the students of `textgen summarize`
DEMO_UPDATES = 160
DEMO_LAYERS = TeacherLayers(encoder=6, decoder=2, dropout=0.0)
"""Layers of the shipped teacher that the demo's students begin with: its whole encoder."""
DEMO_FROZEN = ("embedding", "encoder", "encoder_norm")
"""What the demo's students keep of the teacher as it is, so that few updates are enough."""
SHIPPED_LAYERS = TeacherLayers(encoder=3, decoder=3, dropout=0.1)
"""Layers of the shipped teacher that the shipped student begins with."""
VERSES_LAYERS = TeacherLayers(encoder=3, decoder=2, dropout=0.1)
"""Layers of the shipped teacher that students begin with; the first and the last are among them."""


def verses_student(agent: Agent, seed: int = 0, train_pairs: int | None = 4000) -> Experiment:
    """Return the experiment of `textgen demo`: a student from its teacher's layers, in minutes.

    It has the teacher's embeddings and encoder, and learns to write with two decoder layers. An
    agent that writes texts of its own learns from further sources without references.
    """
    reads_sources = agent.student_writes and agent.learns_without_references
    return Experiment(
        task=VersesConfig(extra_versions=(ELBERFELDER,), max_extra_words=30),
        agent=agent,
        student_from_teacher=DEMO_LAYERS,
        learner=LearnerConfig(
            updates=DEMO_UPDATES,
            batch_size=32,
            learning_rate=2e-3,
            warmup=10,
            frozen=DEMO_FROZEN,
            evaluate_every=DEMO_UPDATES // 2,
            seed=seed,
        ),
        train_pairs=train_pairs,
        train_sources=None if reads_sources else 0,
        validation_pairs=100,
        diagnostics=False,
    )


def shipped_students() -> dict[str, Path]:
    """Return the folders of the students that come with the project, by their names in tables."""
    return {"shipped student": VERSES_STUDENT}


def from_layers(experiment: Experiment) -> Experiment:
    """Return the experiment with a student that begins with layers of the shipped teacher."""
    return replace(experiment, student=RecurrentConfig(), student_from_teacher=VERSES_LAYERS)


def study_start(agent: Agent, seed: int, train_pairs: int, updates: int) -> Experiment:
    """Return the run of `textgen study` that makes the common start of a seed.

    Args:
        agent: the algorithm that trains it.
        seed: of training and of the draw of the pairs.
        train_pairs: pairs that it sees.
        updates: of 64 texts each.
    """
    experiment = paper_student(agent, seed, train_pairs, updates, learning_rate=1e-3)
    return from_layers(experiment)


def study_student(
    agent: Agent, seed: int, train_pairs: int, updates: int, start: Path
) -> Experiment:
    """Return an agent's run of `textgen study`, at the learning rate that its paper asks for.

    Args:
        agent: the algorithm.
        seed: of training and of the draw of the pairs.
        train_pairs: pairs that it sees.
        updates: of 64 texts each.
        start: folder of the model that it begins with.
    """
    rate = 5e-4 * agent.learning_rate_factor
    experiment = paper_student(agent, seed, train_pairs, updates, learning_rate=rate)
    return replace(experiment, student_init=start)


def paper_student(
    agent: Agent,
    seed: int,
    train_pairs: int = 4000,
    updates: int = 2500,
    *,
    learning_rate: float = 4e-3,
) -> Experiment:
    """Return a run of `textgen paper-order`: a student of a quarter of its teacher's size.

    Args:
        agent: the algorithm.
        seed: of the weights, of training, and of the draw of the pairs.
        train_pairs: pairs that it sees.
        updates: of 64 texts each.
        learning_rate: its maximum.
    """
    return Experiment(
        task=TASKS["verses"],
        agent=agent,
        student=RecurrentConfig(width=288, dropout=0.2),
        learner=LearnerConfig(
            updates=updates,
            learning_rate=learning_rate,
            warmup=min(200, updates // 10),
            evaluate_every=max(updates // 10, 1),
            seed=seed,
        ),
        train_pairs=train_pairs,
        train_draw=seed,
        precision="bfloat16",
    )


def distilled_student(
    agent: Agent,
    *,
    updates: int,
    learning_rate: float,
    student: ModelConfig | None = None,
    start: TeacherLayers | Path | None = None,
) -> Experiment:
    """Return a run of `textgen distill-verses`: a student that one would deploy.

    It learns from all pairs, the long verses, and those of a second German version.

    Args:
        agent: the algorithm.
        updates: of 64 texts each.
        learning_rate: its maximum.
        student: size or kind of the student; None for that of its start.
        start: layers of the teacher, or folder of the model, that it begins with; None for random
            weights.
    """
    is_copied = isinstance(start, TeacherLayers)
    return Experiment(
        task=VersesConfig(extra_versions=(ELBERFELDER, SCHLACHTER)),
        agent=agent,
        student=student or RecurrentConfig(),
        student_from_teacher=start if is_copied else None,
        student_init=None if is_copied else start,
        learner=LearnerConfig(
            updates=updates,
            learning_rate=learning_rate,
            warmup=100,
            ema=0.998,
            evaluate_every=max(updates // 12, 1),
        ),
        validation_pairs=600,
        precision="bfloat16",
    )


def unsmoothed_teacher() -> Experiment:
    """Return the shipped teacher's experiment gone on without label smoothing."""
    experiment = verses_teacher(VERSES_TEACHER)
    learner = replace(
        experiment.learner, updates=600, learning_rate=2e-4, warmup=60, evaluate_every=100
    )
    return replace(experiment, agent=MLE(), learner=learner)


def verses_teacher(start_from: Path | None = None) -> Experiment:
    """Return the shipped teacher's experiment: two German versions, all lengths and chapters."""
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
    """Return the experiment of the teacher of `textgen summarize`, on all training pairs."""
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
    """Return the experiment of `textgen summarize`: a small student on a few descriptions."""
    return Experiment(
        task=TASKS["descriptions"],
        teacher=teacher,
        student=RecurrentConfig(dropout=0.3),
        agent=agent,
        learner=LearnerConfig(updates=1000, seed=seed),
        train_pairs=train_pairs,
        validation_pairs=500,
    )
