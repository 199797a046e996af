"""Text generation as a Gymnasium environment with a frozen teacher as the expert oracle.

Importing this package registers an environment for each task in `TASKS`, such as
`TextGen/Copy-v0`: `gymnasium.make(id)` gives one episode at a time,
`gymnasium.make_vec(id, num_envs=N)` many at once on the device. Each takes the arguments of the
environment's class and either `config`, the task's configuration, or `task`, a task that was made
before. Reward and noise that a task's configuration brings hold unless others are given.
"""

from textgen_env import envs
from textgen_env.envs.registration import register_env
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.registry import import_all
from textgen_env.tasks import TASKS
from textgen_env.types import Examples, ShapeError, SpecialTokens, Trajectories, Writer

__all__ = [
    "Examples",
    "ShapeError",
    "SpecialTokens",
    "TextGenEnv",
    "TextGenVectorEnv",
    "Trajectories",
    "Writer",
]

import_all(envs.__name__, envs.__path__)
TASKS.watch(register_env)
