"""Experts: oracles that answer, at any state, which token comes next.

`RemoteExpert` is imported from its file: it needs `pip install textgen-env[remote]`.
"""

from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import Expert, ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.kept_states import KeptStatesExpert, KeptTexts
from textgen_env.experts.proxy import ProxyExpert
from textgen_env.experts.queries import Queries
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.experts.top_k import TopK

__all__ = [
    "CrossTokenizerExpert",
    "DynamicOracle",
    "Expert",
    "ExpertError",
    "KeptStatesExpert",
    "KeptTexts",
    "NeuralExpert",
    "NoExpert",
    "ProxyExpert",
    "Queries",
    "RemoteTeacher",
    "ScriptedExpert",
    "TopK",
]
