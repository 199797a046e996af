"""Tests of models with integer products: rounding, rows on their own, trained models, refusals."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.support.toy import random_texts, stepped_logits
from textgen_env.generation.decoding import greedy
from textgen_env.models.acceleration import int8
from textgen_env.models.acceleration.int8 import (
    Int8Embedding,
    Int8Linear,
    int8_linear,
    quantize_rows,
    weight_levels,
    with_int8_weights,
)
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.layers import TiedEmbedding
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import load_model
from textgen_env.models.transformer import TransformerConfig

CONFIGS = {
    "transformer": TransformerConfig(50, 32, 2, 64),
    "recurrent": RecurrentConfig(50, 32),
    "ssru": HybridConfig(50, 32, 2, 64, unit="ssru"),
    "sru_pp": HybridConfig(50, 32, 2, 64, unit="sru_pp"),
    "gru": HybridConfig(50, 32, 2, 64, unit="gru"),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return CONFIGS[request.param].build().eval()


def test_a_product_by_hand(monkeypatch):
    monkeypatch.setattr(int8, "weight_levels", lambda: 127)
    layer = nn.Linear(2, 2)
    layer.load_state_dict(
        {"weight": torch.tensor([[127.0, 2.4], [-0.127, 0.0005]]), "bias": torch.tensor([1.0, 2])}
    )
    quantized = with_int8_weights(layer)
    levels, scales = quantized.blocks
    assert levels.tolist() == [[127, 2], [-127, 0]]  # 0.0005 is half a level, rounded to even
    torch.testing.assert_close(scales, torch.tensor([[1.0], [0.001]]))
    # 25.4 is level 127 of scale 0.2, -1.9 is -9.5 levels, rounded to -10: 127 * 127 - 10 * 2.
    with torch.no_grad():
        output = quantized(torch.tensor([[25.4, -1.9]]))
    torch.testing.assert_close(output, torch.tensor([[16109 * 0.2 + 1, -16129 * 0.2 * 0.001 + 2]]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("max_level", [127, 63])
@pytest.mark.parametrize("shape", [(1, 48), (70, 48), (3, 5, 48), (48,), (0, 48), (2, 0, 48)])
def test_a_product_is_off_by_no_more_than_rounding_allows(bias, max_level, shape, monkeypatch):
    monkeypatch.setattr(int8, "weight_levels", lambda: max_level)
    torch.manual_seed(0)
    layer = nn.Linear(48, 33, bias=bias)
    hidden = torch.randn(shape) * torch.logspace(-3, 3, 48)
    with torch.no_grad():
        found = with_int8_weights(layer)(hidden).double()
        exact = layer.double()(hidden.double())
        # Off by half a scale each: |x w - (x + a)(w + b)| <= |x| |b| + |w| |a| + |a| |b|.
        row = hidden.double().abs().amax(-1, keepdim=True) / 127 / 2
        column = layer.weight.abs().amax(-1) / max_level / 2
        bound = hidden.double().abs().sum(-1, keepdim=True) * column
        bound = bound + row * (layer.weight.abs().sum(-1) + 48 * column)
    assert found.shape == exact.shape
    assert ((found - exact).abs() <= bound * 1.0001 + 1e-6).all()


def check_extreme_sums(max_level):
    levels = torch.full((64, 512), 127.0)
    for sign in (1, -1):
        weight = quantize_rows(sign * torch.ones(40, 512), max_level)
        output = int8_linear(levels, weight, None)
        torch.testing.assert_close(output, torch.full((64, 40), sign * 512 * 127.0))


def test_extreme_levels_are_added_without_overflow():
    check_extreme_sums(weight_levels())


def test_weights_have_fewer_levels_where_products_overflow(monkeypatch):
    def saturated(left, right):  # the left side is shifted to be unsigned
        products = (left.int() + 128)[:, :, None] * right.int()
        pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
        return pairs.sum(1) - 128 * right.int().sum(0)

    monkeypatch.setattr(int8, "add_products", saturated)
    assert int8.weight_levels.__wrapped__() == 63
    check_extreme_sums(63)


def test_rows_of_zeros_and_rows_too_small_for_a_scale_give_the_bias():
    layer = nn.Linear(4, 3)
    hidden = torch.tensor([[0.0] * 4, [1e-40] * 4])
    with torch.no_grad():
        torch.testing.assert_close(with_int8_weights(layer)(hidden), layer.bias.expand(2, 3))


def test_weights_of_zeros_give_the_bias():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        assert torch.equal(with_int8_weights(layer)(torch.randn(2, 4)), layer.bias.expand(2, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(value):
    layer = with_int8_weights(nn.Linear(4, 3))
    hidden = torch.randn(3, 4)
    with torch.no_grad():
        expected = layer(hidden)
        hidden[1, 2] = value
        found = layer(hidden)
    assert not found[1].isfinite().any()
    assert torch.equal(found[::2], expected[::2])


def test_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    layer, embedding = (
        with_int8_weights(nn.Linear(64, 48)),
        with_int8_weights(TiedEmbedding(90, 64)),
    )
    hidden = torch.randn(70, 64) * torch.logspace(-4, 4, 70)[:, None]
    with torch.no_grad():
        for product in (layer, embedding.logits):
            together = product(hidden)
            for rows in (slice(0, 1), slice(69, 70), slice(3, 20)):
                assert torch.equal(product(hidden[rows]), together[rows])
            columns = hidden.t().contiguous().t()
            assert torch.equal(product(columns), together)


def test_steps_are_those_of_the_whole_text_and_near_the_model(model):
    source, actions = random_texts(9)
    quantized = with_int8_weights(model)
    kinds = {type(module) for module in quantized.modules()}
    assert {Int8Linear, Int8Embedding} <= kinds
    assert not kinds & {nn.Linear, TiedEmbedding}
    with torch.no_grad():
        expected = model.sequence_logits(source, actions)
        whole = quantized.sequence_logits(source, actions)
    steps = stepped_logits(quantized, source, actions)
    # Sums in another order may round to a neighbouring level.
    assert (steps - whole).norm() < 0.01 * whole.norm()
    assert 0 < (whole - expected).norm() < 0.05 * expected.norm()
    pairs = zip(source.split(1), actions.split(1), strict=True)
    alone = torch.cat([stepped_logits(quantized, *pair) for pair in pairs])
    assert (alone - steps).norm() < 0.01 * steps.norm()


def test_the_model_itself_stays_as_it_was_and_shares_its_weights(model):
    before = {name: (type(module), module) for name, module in model.named_modules()}
    quantized = with_int8_weights(model)
    assert {name: (type(module), module) for name, module in model.named_modules()} == before
    pairs = zip(model.parameters(), quantized.parameters(), strict=True)
    assert all(own is shared for own, shared in pairs)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_answer_as_the_model(model, again):
    source, actions = random_texts(7)
    quantized = with_int8_weights(model)
    assert torch.equal(
        stepped_logits(again(quantized), source, actions),
        stepped_logits(quantized, source, actions),
    )


def test_a_trained_model_writes_the_same_texts():
    torch.manual_seed(0)
    model = TransformerConfig(20, 32, 2, 64, 1, 1, dropout=0.0).build()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    words = torch.randint(3, 20, (464, 4))
    pairs = torch.cat([words, torch.full((464, 1), 2)], 1)
    for batch in pairs[:400].repeat(15, 1).split(50):
        logits = model.sequence_logits(batch, batch)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    test = pairs[400:]
    written, expected = (greedy(each, test, 5) for each in (with_int8_weights(model), model))
    assert (expected == test).float().mean() > 0.9
    assert (written == expected).float().mean() > 0.95


@pytest.mark.parametrize("family", ["marian", "llama", "qwen2"])
def test_pretrained_models_are_near_those_of_whole_numbers(family, tmp_path):
    pytest.importorskip("transformers")
    from tests.support.pretrained import FAMILIES, save_family

    model = load_model(save_family(FAMILIES[family], tmp_path))
    rounded = with_int8_weights(model)
    assert sum(isinstance(module, Int8Linear) for module in rounded.modules()) > 10
    texts = torch.randint(5, 15, (2, 6, 4))
    source = torch.cat([texts[0], torch.full((6, 1), model.special.end)], 1)
    with torch.no_grad():
        exact, found = (each.sequence_logits(source, texts[1]) for each in (model, rounded))
    assert (found - exact).std() < 0.1 * exact.std()
    assert not torch.equal(found, exact)


def test_models_that_cannot_act_in_int8_are_refused():
    with torch.device("meta"):
        elsewhere = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"float32 on a CPU to act in int8, got torch.float32 on meta"
    ):
        with_int8_weights(elsewhere)
    with pytest.raises(ValueError, match=r"to act in int8, got torch.bfloat16 on cpu"):
        with_int8_weights(nn.Linear(2, 2, dtype=torch.bfloat16))


def test_a_gradient_is_refused_rather_than_lost():
    layer = with_int8_weights(nn.Linear(3, 4))
    with pytest.raises(RuntimeError, match=r"must act without gradients: call it in torch.no_grad"):
        layer(torch.randn(2, 3, requires_grad=True))
