"""Generation: greedy decoding, sampling and beam search over any sequence model.

The function `beam_search` is imported from its file or from `textgen_env`: here it would hide the
file of the same name.
"""

from textgen_env.generation.beam_search import BeamSearch, n_best
from textgen_env.generation.decoding import (
    Decoder,
    choose_action,
    decode_all,
    greedy,
    next_action,
    sample,
)
from textgen_env.generation.sampling import Sampling

__all__ = [
    "BeamSearch",
    "Decoder",
    "Sampling",
    "choose_action",
    "decode_all",
    "greedy",
    "n_best",
    "next_action",
    "sample",
]
