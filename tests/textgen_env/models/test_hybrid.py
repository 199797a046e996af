"""Tests of the hybrid model: its layers beside a Transformer's, its cache, its sizes."""

import pytest
import torch
import torch.nn.functional as F

from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.recurrent_units import UNITS
from textgen_env.models.transformer import Transformer, TransformerConfig

VOCAB, SIZES = 20, (16, 2, 32)


def texts(rows, width):
    return torch.randint(3, VOCAB, (rows, width), generator=torch.Generator().manual_seed(rows))


@pytest.fixture(params=UNITS)
def model(request):
    torch.manual_seed(0)
    return Hybrid(HybridConfig(VOCAB, *SIZES, unit=request.param)).eval()


@torch.no_grad()
def test_all_but_the_first_sublayer_is_a_transformers(model):
    """Silence the first sublayer of both models: with the same other weights they are the same."""
    teacher = Transformer(TransformerConfig(VOCAB, *SIZES)).eval()
    missing, unexpected = model.load_state_dict(teacher.state_dict(), strict=False)
    assert all(".unit" in name for name in missing)
    assert all(".attention" in name and "decoder" in name for name in unexpected)
    for ours, theirs in zip(model.decoder, teacher.decoder, strict=True):
        ours.unit_norm.weight.zero_()
        ours.unit_norm.bias.zero_()
        for parameter in ours.unit.parameters():
            parameter.zero_()
        theirs.attention.out.weight.zero_()
    source, actions = texts(4, 6), texts(5, 5)[:4]
    expected = teacher.sequence_logits(source, actions)
    assert torch.equal(model.sequence_logits(source, actions), expected)


@torch.no_grad()
def test_what_a_step_reads_of_the_past_does_not_grow(model):
    cache = model.start(texts(3, 5), 40)
    shapes = [cache.states.shape, cache.source.keys_values.shape]
    assert cache.memory.numel() == 2 * 2 * 3 * 40 * (4 if model.config.unit == "sru_pp" else 0)
    for step in range(30):
        _, cache = model.step(texts(3, 30)[:, step], cache)
    assert [cache.states.shape, cache.source.keys_values.shape] == shapes
    assert cache.states.dtype == torch.float32
    assert cache.length.tolist() == [30, 30, 30]


@torch.no_grad()
def test_the_position_counts_as_in_a_transformer(model):
    token, cache = torch.full((2,), 5), model.start(texts(2, 5), 4)
    cache = cache.advance(cache.states)  # the state of the first position, at the second
    expected = model.start(texts(2, 5), 4)
    assert not torch.allclose(model.step(token, cache)[0], model.step(token, expected)[0])


@torch.no_grad()
def test_one_compiled_graph_serves_all_steps(model):
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(model.step, backend=count, fullgraph=True)
    cache, compiled_cache = model.start(texts(4, 5), 3), model.start(texts(4, 5), 3)
    for previous in texts(4, 3).t():
        logits, cache = model.step(previous, cache)
        compiled_logits, compiled_cache = step(previous, compiled_cache)
        torch.testing.assert_close(compiled_logits, logits)
    assert len(graphs) == 1


@torch.no_grad()
def test_steps_under_autocast_are_near_to_float32(model):
    source, actions = texts(4, 6), texts(4, 5)
    exact = model.sequence_logits(source, actions)
    cache, previous, logits = model.start(source, 5), F.pad(actions, (1, 0), value=1), []
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(5):
            answer, cache = model.step(previous[:, step], cache)
            logits.append(answer.float())
    near = torch.stack(logits, 1)
    assert (near - exact).norm() < 0.06 * exact.norm()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unit": "lstm"}, "unit must be one of ssru, sru, sru_pp, gru, got 'lstm'"),
        ({"width": 18, "num_heads": 4}, r"width must be .* divisible by num_heads \(4\), got 18"),
        ({"unit": "sru_pp", "width": 4}, "width must be at least 8 for unit sru_pp, got 4"),
        ({"num_decoder_layers": 0}, "num_decoder_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_impossible_sizes_are_rejected(wrong, message):
    with pytest.raises(ValueError, match=message):
        HybridConfig(VOCAB, **wrong)
