"""Sequence models, their storage, and the registry of those that are trained from scratch.

A further file of this folder needs no line here: it calls `STUDENTS.register` after its model.
"""

from textgen_env.models.config import ModelConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.registry import Registry, import_all

STUDENTS: Registry[ModelConfig] = Registry(
    "STUDENTS", "model", "textgen.models", ModelConfig, of_classes=False
)
STUDENTS.register("recurrent", RecurrentConfig())
STUDENTS.register("transformer", TransformerConfig())
import_all(__name__, __path__)
