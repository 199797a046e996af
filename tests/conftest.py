"""Shared fixtures: thread count and the smallest real models and tasks."""

import pytest
import torch

from textgen_env.models.transformer import Transformer, TransformerConfig

torch.set_num_threads(2)  # the default makes tiny trainings many times slower


@pytest.fixture
def transformer():
    """A two-layer Transformer over 50 tokens, in evaluation mode."""
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=50, width=32, num_heads=2, feed_forward=64)
    return Transformer(config).eval()
