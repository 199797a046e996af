"""Empty batches are empty results, and sources of no columns are refused before the first step."""

import pytest
import torch

from textgen_agents.evaluation.exposure_bias import compare_with_teacher
from textgen_agents.evaluation.quality import translate
from textgen_env import (
    BeamSearch,
    Examples,
    Hybrid,
    HybridConfig,
    NeuralExpert,
    Recurrent,
    RecurrentConfig,
    Trajectories,
    Transformer,
    TransformerConfig,
    beam_search,
    greedy,
)

VOCAB_SIZE, STEPS = 11, 4
NO_ROWS = torch.zeros(0, 3, dtype=torch.int64)
NO_COLUMNS = torch.zeros(2, 0, dtype=torch.int64)


@pytest.fixture(params=["transformer", "recurrent", "ssru", "sru", "sru_pp", "gru"])
def model(request):
    """Return an untrained model over eleven tokens."""
    if request.param == "recurrent":
        return Recurrent(RecurrentConfig(VOCAB_SIZE, 16, 1, 1)).eval()
    if request.param != "transformer":
        return Hybrid(HybridConfig(VOCAB_SIZE, 16, num_heads=2, unit=request.param)).eval()
    return Transformer(TransformerConfig(VOCAB_SIZE, 16, num_heads=2, feed_forward=16)).eval()


@pytest.mark.parametrize("decode", [greedy, BeamSearch(beam_size=2)])
def test_no_source_gives_no_text(model, decode):
    assert decode(model, NO_ROWS, STEPS).shape == (0, STEPS)


def test_no_row_and_no_step_give_no_logits(model):
    assert model.sequence_logits(NO_ROWS, NO_ROWS).shape == (0, 3, VOCAB_SIZE)
    two = torch.full((2, 3), 4)
    assert model.sequence_logits(two, NO_COLUMNS).shape == (2, 0, VOCAB_SIZE)


@pytest.mark.parametrize(
    "read",
    [
        lambda model: model.start(NO_COLUMNS, STEPS),
        lambda model: model.sequence_logits(NO_COLUMNS, torch.full((2, 3), 4)),
        lambda model: greedy(model, NO_COLUMNS, STEPS),
        lambda model: beam_search(model, NO_COLUMNS, STEPS),
    ],
    ids=["start", "sequence_logits", "greedy", "beam_search"],
)
def test_sources_of_no_columns_are_refused(model, read):
    with pytest.raises(ValueError, match=r"^source must have at least one column, got shape"):
        read(model)


def test_no_text_to_compare_or_to_translate_is_refused(model, tiny_task):
    states = Trajectories.from_examples(Examples(NO_ROWS, NO_ROWS), model.special)
    with pytest.raises(ValueError, match="trajectories must hold at least one text, got 0"):
        compare_with_teacher(states, model, NeuralExpert(model))
    with pytest.raises(ValueError, match="source must hold at least one text, got none"):
        translate(model, tiny_task, [])
