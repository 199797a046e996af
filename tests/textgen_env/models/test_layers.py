"""Tests of attention against PyTorch's own, and of the statistics of dropout."""

import math

import pytest
import torch
import torch.nn.functional as F

from textgen_env.models.layers import Dropout, attend

ROWS, HEADS, STEPS, POSITIONS, WIDTH = 3, 2, 4, 5, 8
ELEMENTS = 200_003  # no multiple of 8, the number of random bytes drawn at once


def visible(shape):
    mask = torch.rand(shape) < 0.6
    mask[..., 0] = True  # each query needs at least one visible position
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "mask_shape", [(ROWS, 1, 1, POSITIONS), (STEPS, POSITIONS), (ROWS, HEADS, STEPS, POSITIONS)]
)
def test_attention_equals_pytorchs(mask_shape, dtype):
    torch.manual_seed(0)
    mask = visible(mask_shape)
    query = torch.randn(ROWS, HEADS, STEPS, WIDTH, dtype=dtype, requires_grad=True)
    key, value = torch.randn(2, ROWS, HEADS, POSITIONS, WIDTH, dtype=dtype).requires_grad_()
    weights = torch.randn(ROWS, HEADS, STEPS, WIDTH, dtype=dtype)
    ours = attend(query, key, value, mask)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, (query, key, value), weights),
        torch.autograd.grad(theirs, (query, key, value), weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_attention_keeps_the_dtype_of_values_under_autocast():
    query = key = value = torch.randn(1, 1, 2, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(query, key, value, torch.ones(2, 2, dtype=torch.bool)).dtype == torch.bfloat16


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(probability):
    torch.manual_seed(0)
    dropped = Dropout(probability)(torch.ones(ELEMENTS))
    share = round(256 * probability) / 256
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / (1 - share)).item()}
    deviation = math.sqrt(share * (1 - share) / ELEMENTS)
    assert abs((dropped == 0).double().mean() - share) < 5 * deviation
    assert abs(dropped.double().mean() - 1) < 5 * deviation / (1 - share)


def test_every_byte_of_a_random_word_drops_its_share():
    torch.manual_seed(0)
    dropped = Dropout(0.25)(torch.ones(8 * 20_000)).view(-1, 8) == 0
    deviation = math.sqrt(0.25 * 0.75 / 20_000)
    assert ((dropped.double().mean(0) - 0.25).abs() < 5 * deviation).all()


def test_dropout_repeats_under_a_seed_and_not_otherwise():
    layer, hidden = Dropout(0.5), torch.randn(3, 5, 7)
    torch.manual_seed(1)
    first, second = layer(hidden), layer(hidden)
    torch.manual_seed(1)
    assert torch.equal(layer(hidden), first)
    assert not torch.equal(first, second)


def test_dropout_is_the_identity_in_evaluation_and_at_zero():
    hidden = torch.randn(3, 5)
    assert Dropout(0.5).eval()(hidden) is hidden
    assert Dropout(0.0)(hidden) is hidden


def test_the_gradient_of_dropout_is_its_factor():
    hidden = torch.ones(999, requires_grad=True)
    dropped = Dropout(0.5)(hidden)
    dropped.sum().backward()
    assert torch.equal(hidden.grad, dropped.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dropout_keeps_the_dtype(dtype):
    assert Dropout(0.5)(torch.ones(9, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_dropout_rejects_probabilities_out_of_range(probability):
    with pytest.raises(ValueError, match="dropout must be in"):
        Dropout(probability)
