"""Sequence models and their storage.

Models of `transformers`, exports and acceleration are imported from their own folders.
"""

from textgen_env.models.ensemble import Ensemble
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.sequence_model import Cache, SequenceModel
from textgen_env.models.storage import ModelFileError, load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig

__all__ = [
    "Cache",
    "Ensemble",
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
