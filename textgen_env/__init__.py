"""Text generation as a Gymnasium environment with a frozen teacher as the expert oracle.

Importing this package registers `TextGen/Copy-v0`, `TextGen/Verses-v0`,
`TextGen/Descriptions-v0`, `TextGen/Text-v0` and `TextGen/Recovery-v0`: `gymnasium.make(id)` gives
one episode at a time, `gymnasium.make_vec(id, num_envs=N)` many at once on the device. Each takes
the arguments of the environment's class and either `config`, the task's configuration, or `task`, a
task that was made before. Recovery's noise and reward are the task's own unless others are given.
"""

from importlib.metadata import PackageNotFoundError, version

import gymnasium

from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import Expert, ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.generation.beam_search import BeamSearch, beam_search, n_best
from textgen_env.generation.decoding import Sampling, greedy, next_action, sample
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import Pair, Task, TextTask
from textgen_env.types import Examples, ShapeError, SpecialTokens, Trajectories, Writer

__all__ = [
    "BeamSearch",
    "DynamicOracle",
    "Examples",
    "Expert",
    "ExpertError",
    "NeuralExpert",
    "NoExpert",
    "Pair",
    "Recurrent",
    "RecurrentConfig",
    "Sampling",
    "ScriptedExpert",
    "SequenceModel",
    "ShapeError",
    "SpecialTokens",
    "Task",
    "TextGenEnv",
    "TextGenVectorEnv",
    "TextTask",
    "Trajectories",
    "Transformer",
    "TransformerConfig",
    "Writer",
    "__version__",
    "beam_search",
    "greedy",
    "load_model",
    "load_tokenizer",
    "n_best",
    "next_action",
    "sample",
    "save_model",
]

try:
    __version__ = version("textgen-env")
except PackageNotFoundError:  # the folder is on the path without having been installed
    __version__ = "0+unknown"

for _name in ("Copy", "Verses", "Descriptions", "Text", "Recovery"):
    gymnasium.register(
        id=f"TextGen/{_name}-v0",
        entry_point="textgen_env.envs.registration:make_env",
        vector_entry_point="textgen_env.envs.registration:make_vector_env",
        kwargs={"name": _name.lower()},
    )
