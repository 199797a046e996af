"""Losses: divergences of next-token distributions, labels, and the means that agents minimize."""

from textgen_agents.losses.divergences import (
    Divergence,
    cross_entropy,
    entropy,
    forward_kl,
    generalized_jsd,
    masked_mean,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from textgen_agents.losses.kl_mixtures import EntropyAwareKL, MixedKL
from textgen_agents.losses.labels import Dense, Label, LabelledBatch, Sampled, Top1, TopKWithTail
from textgen_agents.losses.objectives import (
    loss_by_writer,
    loss_for,
    mean_over_actions,
    reference_loss,
    token_loss,
)
from textgen_agents.losses.state_chunks import (
    StateChunk,
    label_states,
    mean_in_chunks,
    mean_over_states,
)

__all__ = [
    "Dense",
    "Divergence",
    "EntropyAwareKL",
    "Label",
    "LabelledBatch",
    "MixedKL",
    "Sampled",
    "StateChunk",
    "Top1",
    "TopKWithTail",
    "cross_entropy",
    "entropy",
    "forward_kl",
    "generalized_jsd",
    "label_states",
    "loss_by_writer",
    "loss_for",
    "masked_mean",
    "mean_in_chunks",
    "mean_over_actions",
    "mean_over_states",
    "reference_loss",
    "reverse_kl",
    "skewed_kl",
    "skewed_reverse_kl",
    "token_loss",
    "total_variation",
]
