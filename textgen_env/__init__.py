"""Text generation as a Gymnasium environment with a frozen teacher as the expert oracle.

Importing this package registers `TextGen/Copy-v0`, `TextGen/Verses-v0`,
`TextGen/Descriptions-v0`, `TextGen/Text-v0` and `TextGen/Recovery-v0`: `gymnasium.make(id)` gives
one episode at a time, `gymnasium.make_vec(id, num_envs=N)` many at once on the device. Each takes
the arguments of the environment's class and either `config`, the task's configuration, or `task`, a
task that was made before. Recovery's noise and reward are the task's own unless others are given.
"""

import gymnasium

from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
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

for _name in ("Copy", "Verses", "Descriptions", "Text", "Recovery"):
    gymnasium.register(
        id=f"TextGen/{_name}-v0",
        entry_point="textgen_env.envs.registration:make_env",
        vector_entry_point="textgen_env.envs.registration:make_vector_env",
        kwargs={"name": _name.lower()},
    )
