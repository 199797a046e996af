"""Tasks, models and environments, built from their configurations."""

from typing import cast

import torch
from gymnasium.vector import AutoresetMode

from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import Noise, TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.models.config import ModelConfig
from textgen_env.models.storage import Model
from textgen_env.tasks.task import Task, TaskConfig, TextTask
from textgen_env.tasks.train_subset import by_kind
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import Examples, SpecialTokens
from textgen_experiments.runs.progress import tell


def build_task(config: TaskConfig, tokenizer: TextTokenizer | None) -> TextTask:
    """Build the task that `config` describes; its tokenizer is trained if none is given."""
    return config.build(tokenizer)


def learning_env(
    task: Task,
    num_envs: int,
    expert: Expert,
    *,
    examples: Examples | None = None,
    noise: Noise | None = None,
    device: torch.device | str = "cpu",
) -> TextGenVectorEnv:
    """Return an environment for training, without rewards, whose ended slots wait.

    Args:
        task: source of the examples.
        num_envs: slots, the batch size times the agent's `batches_per_rollout`.
        expert: the expert that is imitated.
        examples: examples to learn from; None for the task's own.
        noise: function that replaces actions; None to write what is chosen.
        device: device of all tensors.
    """
    return TextGenVectorEnv(
        task,
        num_envs,
        examples=examples,
        expert=expert,
        reward=no_reward,
        noise=noise,
        autoreset_mode=AutoresetMode.DISABLED,
        device=device,
    )


def build_model(config: ModelConfig, seed: int, special: SpecialTokens | None = None) -> Model:
    """Build a model with random weights, the same for the same seed.

    Args:
        config: its size.
        seed: of its weights.
        special: its tokenizer's special tokens; None for those of tokenizers trained here.

    Raises:
        ValueError: a pretrained model is asked for, which is loaded and not built.
    """
    torch.manual_seed(seed)
    return cast("Model", config.build(special))


def num_parameters(model: Model) -> int:
    """Return the number of parameters, a shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def report_dropped(task: TextTask) -> None:
    """Print how many pairs and sources there are and how many were left out, and why."""
    pairs, sources = by_kind(task.train)
    tell(
        f"{task.name}: {len(pairs):,} training, {len(task.validation):,} validation, "
        f"{len(task.test):,} test pairs",
    )
    if sources or task.repeated:
        tell(
            f"training sources without references: {len(sources):,}, and {len(task.repeated):,} "
            "that training pairs have too",
        )
    if task.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in task.dropped.items())
        tell(f"left out: {reasons}")
    if task.rewritten:
        tell(
            f"references in another Unicode form than the tokenizer's: {task.rewritten:,}, "
            "scored in the tokenizer's",
        )


def report_examples(task: TextTask) -> None:
    """Print what the student learns from, if sources without references are among it."""
    pairs, sources = by_kind(task.train)
    if sources:
        tell(
            f"learned from: {len(pairs):,} pairs and {len(sources):,} sources without references",
        )
