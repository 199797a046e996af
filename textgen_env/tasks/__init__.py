"""Tasks: sources of pairs of source and reference text.

`task.py` defines a task; each other file makes one: `copy.py` (synthetic), `verses.py`
(translation), `descriptions.py` (summarization), `text_files.py` and `hub.py` (the user's own
text). `noise.py` and `prompts.py` derive another task from one, `packages.py` finds the packages
that carry text. Functions that are named like their file, such as `verses`, are imported from it:
here they would hide the file.
"""

from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.descriptions import DescriptionsConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.noise import with_noisy_sources
from textgen_env.tasks.prompts import with_expert_prompts, with_prompts
from textgen_env.tasks.task import DataError, Pair, Task, TextTask
from textgen_env.tasks.text_files import PairFiles, TextFilesConfig
from textgen_env.tasks.verses import VersesConfig

__all__ = [
    "CopyConfig",
    "DataError",
    "DescriptionsConfig",
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
