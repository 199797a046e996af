"""Tests of recurrent units: hand numbers, steps against sequences, gradients."""

import math

import pytest
import torch
from torch import nn

from textgen_env.models.recurrent_units import SRU, SSRU, UNITS, GatedMean, SRUPlusPlus
from textgen_env.models.unit_memory import UnitMemory

STEPS, ROWS, WIDTH = 7, 3, 8
WITHOUT_ATTENTION = [name for name in UNITS if name != "sru_pp"]


def make_unit(name, dtype=torch.float64):
    torch.manual_seed(0)
    unit = UNITS[name](WIDTH)
    for parameter in unit.parameters():
        nn.init.normal_(parameter)  # biases too
    return unit.to(dtype)


def draw_inputs(dtype=torch.float64, steps=STEPS):
    return torch.randn(ROWS, steps, WIDTH, dtype=dtype, requires_grad=True)


def memory_of(unit, rows, dtype=torch.float64):
    """Return the function from a step to the memory before it."""
    shape = (2, rows, 1, STEPS, unit.memory_width)
    keys_values = torch.zeros(shape, dtype=dtype)
    return lambda step: UnitMemory(keys_values, torch.full((rows,), step))


def by_steps(unit, inputs):
    state, outputs = torch.zeros(ROWS, WIDTH, dtype=torch.float64), []
    memory = memory_of(unit, ROWS)
    for index, step in enumerate(inputs.unbind(1)):
        output, state = unit.step(step, state, memory(index))
        outputs.append(output)
    return torch.stack(outputs, 1)


def srupp_by_hand(unit, inputs):
    """Return SRU++'s outputs for (T, D) inputs: each product and mean written out."""
    weights = unit.projection.weight.chunk(3)
    query = inputs @ unit.query.weight.T
    keys, values = (query @ half.T for half in unit.key_value.weight.chunk(2))
    state, outputs = torch.zeros(WIDTH, dtype=torch.float64), []
    for step, given in enumerate(inputs):
        scores = keys[: step + 1] @ query[step] / math.sqrt(WIDTH // 4)
        attended = (scores.exp() / scores.exp().sum()) @ values[: step + 1]
        mixed = query[step] + unit.attention_scale * attended
        spread = ((mixed - mixed.mean()).square().mean() + unit.norm.eps).sqrt()
        normed = (mixed - mixed.mean()) / spread * unit.norm.weight + unit.norm.bias
        forget, reset = (
            (matrix @ normed + bias).sigmoid()
            for matrix, bias in zip(weights[:2], unit.gate_bias.chunk(2), strict=True)
        )
        state = forget * state + (1 - forget) * (weights[2] @ normed)
        outputs.append(reset * state.tanh() + (1 - reset) * given)
    return torch.stack(outputs)


def test_outputs_and_gradients_of_an_srupp_are_those_of_its_formulas():
    unit, inputs = make_unit("sru_pp"), draw_inputs()
    weights, leaves = torch.randn(ROWS, STEPS, WIDTH).double(), (inputs, *unit.parameters())
    found = []
    for outputs in (unit(inputs), torch.stack([srupp_by_hand(unit, row) for row in inputs])):
        found.append((outputs, *torch.autograd.grad(outputs, leaves, weights)))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-10


@torch.no_grad()
def test_steps_and_blocks_of_an_srupp_are_its_sequence():
    unit, inputs = make_unit("sru_pp"), draw_inputs()
    expected = unit(inputs)
    assert (by_steps(unit, inputs) - expected).abs().max() < 1e-10
    state, memory = torch.zeros(ROWS, WIDTH, dtype=torch.float64), memory_of(unit, ROWS)
    for start, end in ((0, 3), (3, STEPS)):
        outputs, states = unit.step_block(inputs[:, start:end], state, memory(start))
        assert (outputs - expected[:, start:end]).abs().max() < 1e-10
        state = states[:, -1]


@torch.no_grad()
def test_an_srupp_begins_as_an_sru_with_a_factored_projection():
    torch.manual_seed(0)
    unit, inputs = SRUPlusPlus(WIDTH).double(), draw_inputs()
    assert unit.attention_scale == 0
    sru = SRU(WIDTH, WIDTH // 4).double()
    sru.load_state_dict(unit.state_dict(), strict=False)
    factored = unit.norm(unit.query(inputs)).transpose(0, 1)
    keep, gates, candidate = sru.activate(sru.projection(factored))
    expected = sru.output(inputs.transpose(0, 1), gates, GatedMean.apply(keep, candidate))
    assert torch.equal(unit(inputs), expected.transpose(0, 1))
    unit.attention_scale.fill_(0.1)
    assert not torch.allclose(unit(inputs)[:, 1:], expected.transpose(0, 1)[:, 1:])


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
@pytest.mark.parametrize("steps", [1, STEPS])
def test_outputs_and_gradients_are_those_of_the_steps(name, steps):
    unit, inputs = make_unit(name), draw_inputs(steps=steps)
    weights, leaves = torch.randn(ROWS, steps, WIDTH), (inputs, *unit.parameters())
    found = []
    for run in (unit, lambda inputs: by_steps(unit, inputs)):
        outputs = run(inputs)
        found.append((outputs, *torch.autograd.grad(outputs, leaves, weights.to(outputs.dtype))))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-10


@torch.no_grad()
def test_two_steps_of_an_ssru_by_hand():
    unit = SSRU(1)
    unit.projection.weight.copy_(torch.tensor([[math.log(3)], [2.0]]))
    unit.gate_bias.fill_(-math.log(9))
    # f_1 = sigmoid(2 ln 3 - ln 9) = 1/2 and c_1 = 1/2 * 0 + 1/2 * 4 = 2;
    # f_2 = sigmoid(-ln 9) = 1/10 for the input 0, and c_2 = 1/10 * 2 + 9/10 * 0 = 1/5.
    memory = memory_of(unit, 1)(0)
    output, state = unit.step(torch.tensor([[2.0]]), torch.zeros(1, 1), memory)
    torch.testing.assert_close(state, torch.tensor([[2.0]]))
    torch.testing.assert_close(output, torch.tensor([[2.0]]))
    output, state = unit.step(torch.tensor([[0.0]]), state, memory)
    torch.testing.assert_close(state, torch.tensor([[0.2]]))
    _, state = unit.step(torch.tensor([[-2.0]]), state, memory)  # f_3 = 1/82, W x = -4
    torch.testing.assert_close(state, torch.tensor([[0.2 / 82 - 4 * 81 / 82]]))
    assert unit.step(torch.tensor([[-2.0]]), state, memory)[0] == 0, "the output is not negative"
    outputs = unit(torch.tensor([[[2.0], [0.0], [-2.0]]]))
    torch.testing.assert_close(outputs, torch.tensor([[[2.0], [0.2], [0.0]]]))


@torch.no_grad()
def test_a_step_of_an_sru_by_hand():
    unit = SRU(1)
    unit.projection.weight.copy_(torch.tensor([[math.log(3)], [0.0], [2.0]]))
    unit.gate_bias.copy_(torch.tensor([-math.log(9), math.log(4)]))
    # c_1 = 2 as above; r_1 = sigmoid(ln 4) = 4/5 and the output is 4/5 tanh 2 + 1/5 * 2.
    memory = memory_of(unit, 1)(0)
    output, state = unit.step(torch.tensor([[2.0]]), torch.zeros(1, 1), memory)
    torch.testing.assert_close(state, torch.tensor([[2.0]]))
    torch.testing.assert_close(output, torch.tensor([[0.8 * math.tanh(2) + 0.4]]))


@torch.no_grad()
def test_the_gru_is_pytorchs():
    unit, inputs = make_unit("gru"), draw_inputs()
    theirs = nn.GRU(WIDTH, WIDTH, batch_first=True).double()
    state = {f"{name}_l0": value for name, value in unit.cell.state_dict().items()}
    theirs.load_state_dict(state)
    torch.testing.assert_close(unit(inputs), theirs(inputs)[0])


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    gate = torch.rand(4, 2, 3, dtype=torch.float64, requires_grad=True)
    candidate = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GatedMean.apply, (gate, candidate))


def test_a_second_gradient_is_refused():
    outputs = make_unit("ssru")(inputs := draw_inputs())
    (grad,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@torch.no_grad()
def test_many_small_terms_are_not_lost_in_bfloat16():
    unit = SSRU(1).to(torch.bfloat16)
    unit.projection.weight.copy_(torch.tensor([[0.0], [1.0]]))
    unit.gate_bias.fill_(6.0)  # each step moves the state by a 400th of the way to 1
    steps = 2000
    outputs = unit(torch.ones(1, steps, 1, dtype=torch.bfloat16))
    expected = 1 - torch.tensor(6.0).sigmoid() ** steps
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs[0, -1, 0].float(), expected, rtol=0.005, atol=0)


@pytest.mark.parametrize("name", UNITS)
def test_units_have_their_number_of_products(name):
    products = {"ssru": 2, "sru": 3, "sru_pp": 1.125, "gru": 6}[name]
    matrices = [each for each in UNITS[name](WIDTH).parameters() if each.dim() == 2]
    assert sum(matrix.numel() for matrix in matrices) == products * WIDTH**2


def test_the_state_of_an_ssru_is_a_mean_of_candidates():
    unit, inputs = make_unit("ssru"), draw_inputs()
    gate, _, candidate = unit.activate(unit.project(inputs.transpose(0, 1)))
    states = GatedMean.apply(gate, candidate)
    assert states.abs().max() <= candidate.abs().max()
    forgetful = GatedMean.apply(torch.zeros_like(gate), candidate)
    assert torch.equal(forgetful, candidate), "with a gate of 0 nothing is kept"
