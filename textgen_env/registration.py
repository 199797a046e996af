"""What `gymnasium.make` and `gymnasium.make_vec` call: a task by name, then the environment."""

from typing import Any

from textgen_env.single_env import TextGenEnv
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import Task
from textgen_env.tasks.text_files import TextFilesConfig, text_files
from textgen_env.tasks.verses import VersesConfig, verses
from textgen_env.vector_env import TextGenVectorEnv

TaskConfig = CopyConfig | VersesConfig | TextFilesConfig


def make_env(
    name: str, task: Task | None = None, config: TaskConfig | None = None, **settings: Any
) -> TextGenEnv:
    """One episode at a time; `settings` are the arguments of `TextGenEnv`."""
    return TextGenEnv(task or make_task(name, config), **settings)


def make_vector_env(
    name: str, task: Task | None = None, config: TaskConfig | None = None, **settings: Any
) -> TextGenVectorEnv:
    """Many episodes at once; `settings` are the arguments of `TextGenVectorEnv`."""
    return TextGenVectorEnv(task or make_task(name, config), **settings)


def make_task(name: str, config: TaskConfig | None) -> Task:
    """The task that goes by `name`, "copy", "verses" or "text".

    Raises:
        ValueError: the configuration is missing, where there is no default, or another task's.
    """
    if name == "copy" and (config is None or isinstance(config, CopyConfig)):
        return copy_task(config)
    if name == "verses" and (config is None or isinstance(config, VersesConfig)):
        return verses(config)
    if name == "text" and isinstance(config, TextFilesConfig):
        return text_files(config)
    raise ValueError(f"config must be the configuration of the task {name!r}, got {config}")
