"""Entry points of `gymnasium.make` and `gymnasium.make_vec`: environments of tasks by name."""

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

import gymnasium
import torch
from gymnasium.vector import AutoresetMode

from textgen_env.envs.rewards import Reward
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.validation import RenderMode
from textgen_env.envs.vector_env import Noise, TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import Task, TaskConfig
from textgen_env.types import Examples


class Settings(TypedDict, total=False):
    """The arguments of `TextGenEnv`, except the task."""

    examples: Examples | None
    expert: Expert | None
    ask_expert: bool
    reward: Reward
    noise: Noise | None
    render_mode: RenderMode | None
    device: torch.device | str


class VectorSettings(Settings, total=False):
    """The arguments of `TextGenVectorEnv`, except the task."""

    num_envs: int
    autoreset_mode: AutoresetMode


def env_id(name: str) -> str:
    """Return the id of the environment of the task `name`, such as `TextGen/MyTask-v0`."""
    return f"TextGen/{''.join(word.capitalize() for word in name.split('_'))}-v0"


def register_env(name: str) -> None:
    """Register the environment of the task `name` with Gymnasium."""
    gymnasium.register(
        id=env_id(name),
        entry_point="textgen_env.envs.registration:make_env",
        vector_entry_point="textgen_env.envs.registration:make_vector_env",
        kwargs={"name": name},
    )


def make_env(
    name: str,
    task: Task | None = None,
    config: TaskConfig | None = None,
    **settings: Unpack[Settings],
) -> TextGenEnv:
    """Return an environment with one episode at a time.

    Args:
        name: of the task in `TASKS`.
        task: a task that was made before; None for the one that `config` describes.
        config: configuration of the task; None for the entry of `TASKS`.
        settings: arguments of `TextGenEnv`; those left out are the task's own if it brings them.
    """
    defaults: Any = own_settings(name, task, config, settings)
    return TextGenEnv(_made(name, task, config), **{**defaults, **settings})


def make_vector_env(
    name: str,
    task: Task | None = None,
    config: TaskConfig | None = None,
    **settings: Unpack[VectorSettings],
) -> TextGenVectorEnv:
    """Return an environment with many episodes at once; the arguments are those of `make_env`."""
    defaults: Any = own_settings(name, task, config, settings)
    return TextGenVectorEnv(_made(name, task, config), **{**defaults, **settings})


def own_settings(
    name: str, task: Task | None, config: TaskConfig | None, given: Mapping[str, object]
) -> Mapping[str, Any]:
    """Return the arguments of the environment that the task's configuration brings.

    Raises:
        ValueError: `task` and `config` are both given, the configuration is missing, where there is
            no default, or another task's, or `task` is given without the noise that it needs.
    """
    if task is not None and config is not None:
        raise ValueError(f"config must be left out where task is given, got {config}")
    default = TASKS[name]
    if task is not None:
        own = default.env_settings
        if "noise" in own and "noise" not in given:  # which the task does not know
            raise ValueError(
                "noise must be given where task is given, got none: give that of its "
                f"{type(default).__name__}, or None to write what is chosen"
            )
        return own
    if not isinstance(config or default, type(default)) or not (config or default.is_complete):
        kind = type(default).__name__
        raise ValueError(f"config must be a {kind} for the task {name!r}, got {config}")
    return (config or default).env_settings


def _made(name: str, task: Task | None, config: TaskConfig | None) -> Task:
    return (config or TASKS[name]).build() if task is None else task
