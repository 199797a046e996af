"""Text generation as a Gymnasium environment with a frozen teacher as the expert oracle.

Importing this package registers an environment for each task in `TASKS`, such as
`TextGen/Copy-v0`: `gymnasium.make(id)` gives one episode at a time,
`gymnasium.make_vec(id, num_envs=N)` many at once on the device. Each takes the arguments of the
environment's class and either `config`, the task's configuration, or `task`, a task that was made
before. Reward and noise that a task's configuration brings hold unless others are given.
"""

from importlib.metadata import PackageNotFoundError, version

from textgen_env import envs
from textgen_env.envs.registration import register_env
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import Expert, ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.generation.beam_search import BeamSearch, beam_search, n_best
from textgen_env.generation.decoding import greedy, next_action, sample
from textgen_env.generation.sampling import Sampling
from textgen_env.models import STUDENTS
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.registry import import_all
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import Pair, Task, TextTask
from textgen_env.types import Examples, ShapeError, SpecialTokens, Trajectories, Writer

__all__ = [
    "STUDENTS",
    "TASKS",
    "BeamSearch",
    "DynamicOracle",
    "Examples",
    "Expert",
    "ExpertError",
    "Hybrid",
    "HybridConfig",
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

import_all(envs.__name__, envs.__path__)
TASKS.watch(register_env)
