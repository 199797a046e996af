"""Tasks: sources of pairs of source and reference text, and their registry.

`task.py` defines a task and its configuration; each other file makes one: `copy.py` and
`division.py` (synthetic), `verses.py` (translation), `descriptions.py` (summarization),
`text_files.py` (the user's own text) and `hub.py` (data sets of the hub). `splits.py` makes a task
of pairs and, by the rules of `sources.py`, of sources without references; `train_subset.py` takes a
part of one. `noise.py` makes another of one, `packages.py` finds the packages that carry text. A
further file of this folder needs no line here: it calls `TASKS.register` after its configuration. A
function named like its file must not be imported here: it would hide that file.
"""

from pathlib import Path

from textgen_env.registry import Registry, import_all
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.descriptions import DescriptionsConfig
from textgen_env.tasks.division import DivisionConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.noise import with_noisy_sources
from textgen_env.tasks.prompts import with_expert_prompts, with_prompts
from textgen_env.tasks.task import DataError, Pair, Task, TaskConfig, TextTask
from textgen_env.tasks.text_files import PairFiles, TextFilesConfig
from textgen_env.tasks.verses import VersesConfig

__all__ = [
    "TASKS",
    "CopyConfig",
    "DataError",
    "DescriptionsConfig",
    "DivisionConfig",
    "HubConfig",
    "Pair",
    "PairFiles",
    "Task",
    "TextFilesConfig",
    "TextTask",
    "VersesConfig",
    "with_expert_prompts",
    "with_noisy_sources",
    "with_prompts",
]

TASKS: Registry[TaskConfig] = Registry(
    "TASKS", "task", "textgen.tasks", TaskConfig, of_classes=False
)
TASKS.register("verses", VersesConfig())
TASKS.register("descriptions", DescriptionsConfig())
TASKS.register("copy", CopyConfig())
TASKS.register("division", DivisionConfig())
TASKS.register("text", TextFilesConfig(train=Path("train.tsv")))
TASKS.register("hub", HubConfig(path="data"))
import_all(__name__, __path__)
