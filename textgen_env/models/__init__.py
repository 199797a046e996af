"""Sequence models, their storage, and the registry of those that are trained from scratch.

A further file of this folder needs no line here: it calls `STUDENTS.register` after its model.
"""

from textgen_env.models.config import ModelConfig
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.sequence_model import Cache, SequenceModel
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.registry import Registry, import_all

__all__ = [
    "STUDENTS",
    "Cache",
    "Ensemble",
    "Hybrid",
    "HybridConfig",
    "ModelFileError",
    "Recurrent",
    "RecurrentConfig",
    "SequenceModel",
    "Transformer",
    "TransformerConfig",
    "load_model",
    "load_tokenizer",
    "save_model",
]

STUDENTS: Registry[ModelConfig] = Registry(
    "STUDENTS", "model", "textgen.models", ModelConfig, of_classes=False
)
STUDENTS.register("recurrent", RecurrentConfig())
STUDENTS.register("transformer", TransformerConfig())
STUDENTS.register("hybrid", HybridConfig())

from textgen_env.models.storage import (  # noqa: E402 - reads STUDENTS
    ModelFileError,
    load_model,
    load_tokenizer,
    save_model,
)

import_all(__name__, __path__)
