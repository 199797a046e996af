"""Models compute at tokens alone: what they give is what they give without any padding."""

import pytest
import torch

from tests.support.toy import SPECIAL, attending, random_sources
from textgen_env.models.hidden_states import states_at
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.token_positions import TokenPositions
from textgen_env.models.transformer import TransformerConfig
from textgen_env.types import SpecialTokens

MASK = torch.tensor([[True, True, False], [True, False, False]])
SIZE = {"width": 16, "num_heads": 2, "feed_forward": 24, "dropout": 0.0}
CONFIGS = [
    TransformerConfig(30, **SIZE),
    HybridConfig(30, **SIZE),
    HybridConfig(30, **SIZE, unit="sru_pp"),
    RecurrentConfig(30, width=16, dropout=0.0),
]


def test_vectors_are_gathered_and_scattered_with_their_gradients():
    positions = TokenPositions.of(MASK)
    padded = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    vectors = positions.gather(padded)
    assert torch.equal(vectors, padded[MASK])
    back = positions.scatter(vectors)
    assert torch.equal(back, padded * MASK[..., None])
    weight = torch.randn(2, 3, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((back * weight).sum(), padded)
    assert torch.equal(gradient, weight * MASK[..., None])


@pytest.mark.parametrize("mask", [torch.ones(2, 3, dtype=torch.bool), MASK.to("meta")])
def test_all_positions_are_taken_where_there_is_no_padding_or_the_host_would_wait(mask):
    positions = TokenPositions.of(mask)
    padded = torch.randn(2, 3, 4)
    assert positions.index is None
    assert torch.equal(positions.gather(padded), padded.flatten(0, 1))
    assert torch.equal(positions.scatter(padded.flatten(0, 1)), padded)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize(
    "special", [SPECIAL, SpecialTokens(pad=2, start=1, end=2)], ids=["own pad", "pad is end"]
)
def test_logits_of_a_padded_batch_are_those_of_each_row_alone(config, special):
    torch.manual_seed(0)
    model = attending(config.build(special)).double()
    source, actions = random_sources(6, 9), random_sources(6, 7).roll(1, 0)
    source_length, length = (source != SPECIAL.pad).sum(1), (actions != SPECIAL.pad).sum(1)
    source, actions = (
        rows.masked_fill(rows == SPECIAL.pad, special.pad) for rows in (source, actions)
    )
    assert length.unique().numel() > 3, "the test needs texts of different lengths"
    batch = model.sequence_logits(source, actions)
    mask = torch.arange(actions.shape[1]) < length[:, None]
    if special.end != special.pad:
        found = states_at(model, TokenPositions.of(mask), source, actions)
        torch.testing.assert_close(found.project(found.states), batch[mask])
    for row in range(len(source)):
        width = int(source_length[row]) if special.end != special.pad else source.shape[1]
        alone = model.sequence_logits(source[row : row + 1, :width], actions[row : row + 1])
        torch.testing.assert_close(alone[0, : length[row]], batch[row, : length[row]])
