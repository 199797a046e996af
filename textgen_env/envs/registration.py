"""What `gymnasium.make` and `gymnasium.make_vec` call: a task by name, then the environment."""

from typing import Literal, TypedDict, Unpack

import torch
from gymnasium.vector import AutoresetMode

from textgen_env.envs.recovery import RecoveryConfig, recovered, recovery_task
from textgen_env.envs.rewards import Reward
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import Noise, TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.descriptions import DescriptionsConfig, descriptions
from textgen_env.tasks.task import Task
from textgen_env.tasks.text_files import TextFilesConfig, text_files
from textgen_env.tasks.verses import VersesConfig, verses
from textgen_env.types import Examples

TaskConfig = CopyConfig | VersesConfig | DescriptionsConfig | TextFilesConfig | RecoveryConfig
KINDS: dict[str, type[TaskConfig]] = {
    "copy": CopyConfig,
    "verses": VersesConfig,
    "descriptions": DescriptionsConfig,
    "text": TextFilesConfig,
    "recovery": RecoveryConfig,
}


class Settings(TypedDict, total=False):
    """The arguments of `TextGenEnv`, except the task."""

    examples: Examples | None
    expert: Expert | None
    ask_expert: bool
    reward: Reward
    noise: Noise | None
    render_mode: Literal["human", "ansi"] | None
    device: torch.device | str


class VectorSettings(Settings, total=False):
    """The arguments of `TextGenVectorEnv`, except the task."""

    num_envs: int
    autoreset_mode: AutoresetMode


def make_env(
    name: str,
    task: Task | None = None,
    config: TaskConfig | None = None,
    **settings: Unpack[Settings],
) -> TextGenEnv:
    """One episode at a time, of `task` or of the task that `name` and `config` describe."""
    made = make_task(name, task, config)
    if name == "recovery":
        _add_slips(settings, task, config)
    return TextGenEnv(made, **settings)


def make_vector_env(
    name: str,
    task: Task | None = None,
    config: TaskConfig | None = None,
    **settings: Unpack[VectorSettings],
) -> TextGenVectorEnv:
    """Many episodes at once, of `task` or of the task that `name` and `config` describe."""
    made = make_task(name, task, config)
    if name == "recovery":
        _add_slips(settings, task, config)
    return TextGenVectorEnv(made, **settings)


def make_task(name: str, task: Task | None, config: TaskConfig | None) -> Task:
    """`task` if it is given, else the one by `name`, of `KINDS`.

    Raises:
        ValueError: `task` and `config` are both given, or the configuration is missing, where there
            is no default, or another task's.
    """
    if task is not None:
        if config is not None:
            raise ValueError(f"config must be left out where task is given, got {config}")
        return task
    if name == "copy" and (config is None or isinstance(config, CopyConfig)):
        return copy_task(config)
    if name == "verses" and (config is None or isinstance(config, VersesConfig)):
        return verses(config)
    if name == "descriptions" and (config is None or isinstance(config, DescriptionsConfig)):
        return descriptions(config)
    if name == "text" and isinstance(config, TextFilesConfig):
        return text_files(config)
    if name == "recovery" and (config is None or isinstance(config, RecoveryConfig)):
        return recovery_task(config)
    kind = KINDS[name]
    raise ValueError(f"config must be a {kind.__name__} for the task {name!r}, got {config}")


def _add_slips(settings: Settings, task: Task | None, config: TaskConfig | None) -> None:
    """Set what makes a task of copying one of recovery, where the user has not: reward and noise.

    Raises:
        ValueError: `task` is given and the noise is not: the task does not say what it is.
    """
    if task is not None and "noise" not in settings:
        raise ValueError(
            "noise must be given where task is given, got none: give the slips of its "
            "RecoveryConfig, or None to write what is chosen"
        )
    config = config if isinstance(config, RecoveryConfig) else RecoveryConfig()
    settings.setdefault("noise", config.slips)
    settings.setdefault("reward", recovered)
