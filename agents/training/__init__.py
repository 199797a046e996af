"""Training: the learner, its configuration, checkpoints, regularizers and processes."""

from textgen_agents.training.checkpoint import CheckpointError
from textgen_agents.training.config import LearnerConfig
from textgen_agents.training.learner import Learner, TrainingError

__all__ = [
    "CheckpointError",
    "Learner",
    "LearnerConfig",
    "TrainingError",
]
