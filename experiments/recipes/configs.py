"""Named experiments: functions that return the configuration of a training."""

from dataclasses import replace
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.dagger import DAgger
from textgen_agents.distillm import DistiLLM
from textgen_agents.imitkd import ImitKDVariant
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Indicator, Linear
from textgen_agents.training.learner import LearnerConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks import TASKS
from textgen_env.tasks.verses import ELBERFELDER, SCHLACHTER, VersesConfig
from textgen_experiments.runs.experiment import Experiment

DESCRIPTIONS_PAIRS = 2000  # training pairs of the students of `textgen summarize`


def verses_student(agent: Agent, seed: int = 0, train_pairs: int | None = 4000) -> Experiment:
    """Return the experiment of `textgen demo`: a small student on a few verse pairs."""
    return Experiment(
        task=TASKS["verses"],
        agent=agent,
        learner=LearnerConfig(updates=1000, seed=seed),
        train_pairs=train_pairs,
    )


def study_student(agent: Agent, seed: int, train_pairs: int | None, updates: int) -> Experiment:
    """Return the experiment of `textgen study`: the demo with fewer updates.

    Beta falls linearly, so that an agent with few updates starts from the data for longer; DAgger
    learns from the teacher's texts alone in the first half of the updates, as its paper trains on
    the expert's data first. DistiLLM, which looks at validation to decide what to learn from, does
    so ten times or more.
    """
    if isinstance(agent, ImitKDVariant):
        agent = replace(agent, beta=Linear())
    if isinstance(agent, DAgger):
        agent = replace(agent, beta=Indicator(until=0.5))
    evaluations = 10 if isinstance(agent, DistiLLM) else 4
    experiment = verses_student(agent, seed, train_pairs)
    learner = replace(
        experiment.learner,
        updates=updates,
        batch_size=32,
        warmup=updates // 5,
        evaluate_every=max(updates // evaluations, 1),
    )
    return replace(experiment, learner=learner)


def paper_student(
    agent: Agent, seed: int, *, train_pairs: int, updates: int, learning_rate: float
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
            warmup=min(200, updates // 5),
            evaluate_every=max(updates // 10, 1),
            seed=seed,
        ),
        train_pairs=train_pairs,
        train_draw=seed,
        precision="bfloat16",
    )


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
