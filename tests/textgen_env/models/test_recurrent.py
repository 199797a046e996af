"""Tests of the recurrent model and of its unrolled GRU against PyTorch's."""

import pytest
import torch
from torch import nn

from textgen_env.models.recurrent import (
    Recurrence,
    Recurrent,
    RecurrentConfig,
    fused_gru,
    reversal,
    run_gru,
)

STEPS, ROWS, INPUTS, WIDTH = 6, 3, 5, 4


def make_problem(steps, rows):
    """Return a cell, inputs, an initial state and weights of a scalar of the states, in float64."""
    torch.manual_seed(0)
    cell = nn.GRUCell(INPUTS, WIDTH).double()
    inputs = torch.randn(steps, rows, INPUTS, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(rows, WIDTH, dtype=torch.float64, requires_grad=True)
    return cell, inputs, initial, torch.randn(steps, rows, WIDTH, dtype=torch.float64)


@pytest.fixture
def problem():
    return make_problem(STEPS, ROWS)


def value_and_gradients(run, problem):
    cell, inputs, initial, weights = problem
    states = run(cell, inputs, initial)
    leaves = inputs, initial, *cell.parameters()
    return states, *torch.autograd.grad(states, leaves, weights.to(states.dtype))


def stepped(cell, inputs, initial):
    states = []
    for step in inputs.unbind():
        initial = cell(step, initial)
        states.append(initial)
    return torch.stack(states)


@pytest.mark.parametrize("run", [run_gru, fused_gru])
@pytest.mark.parametrize(("steps", "rows"), [(STEPS, ROWS), (STEPS, 1), (1, ROWS), (1, 1)])
def test_states_and_gradients_are_those_of_the_cell(run, steps, rows):
    problem = make_problem(steps, rows)
    for ours, theirs in zip(
        value_and_gradients(run, problem), value_and_gradients(stepped, problem), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_states_are_those_of_pytorchs_gru(problem):
    cell, inputs, initial, _ = problem
    gru = nn.GRU(INPUTS, WIDTH).double()
    gru.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    torch.testing.assert_close(run_gru(cell, inputs, initial), gru(inputs, initial[None])[0])


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    steps, rows, width = 4, 2, 2
    shapes = (steps, rows, 3 * width), (rows, width), (width, 3 * width), (width,)
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(Recurrence.apply, arguments)


def test_a_second_gradient_is_refused(problem):
    cell, inputs, initial, _ = problem
    loss = run_gru(cell, inputs, initial).square().sum()
    (grad,) = torch.autograd.grad(loss, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_autocast_is_near_to_float32(problem):
    single = (problem[0].float(), *(tensor.detach().float() for tensor in problem[1:]))
    for tensor in single[1:3]:
        tensor.requires_grad_()
    exact = value_and_gradients(run_gru, single)
    with torch.autocast("cpu", torch.bfloat16):
        near = value_and_gradients(run_gru, single)
    assert near[0].dtype == torch.bfloat16
    for ours, theirs in zip(near, exact, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_reversal_turns_tokens_round_and_leaves_padding():
    tokens = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 4]])
    order = reversal(tokens != 0)
    turned = tokens.t().flatten()[order].t()
    assert turned.tolist() == [[7, 6, 5, 0], [9, 8, 0, 0], [4, 3, 2, 1]]
    assert torch.equal(order.flatten()[order.flatten()], torch.arange(12))


@torch.no_grad()
def test_the_last_token_reaches_the_first_decoder_state_in_both_directions():
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(20, width=8, num_encoder_layers=1)).eval()
    source = torch.tensor([[3, 4, 5, 2, 0, 0], [3, 4, 5, 6, 7, 2]])
    alone = model.start(source[:1, :4], 1)
    torch.testing.assert_close(model.start(source, 1).states[:, :1], alone.states)
    for position in (0, 3):
        changed = source.clone()
        changed[0, position] = 9
        assert not torch.allclose(model.start(changed, 1).states[:, 0], alone.states[:, 0])


@torch.no_grad()
def test_one_compiled_graph_serves_all_steps():
    torch.manual_seed(0)
    model, graphs = Recurrent(RecurrentConfig(20, width=8)).eval(), []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(model.step, backend=count, fullgraph=True)
    source = torch.randint(3, 20, (4, 5))
    cache, compiled_cache = model.start(source, 3), model.start(source, 3)
    for previous in torch.randint(3, 20, (3, 4)):
        logits, cache = model.step(previous, cache)
        compiled_logits, compiled_cache = step(previous, compiled_cache)
        torch.testing.assert_close(compiled_logits, logits)
    assert len(graphs) == 1


def test_the_default_size_is_about_that_of_a_small_student():
    with torch.device("meta"):
        model = Recurrent(RecurrentConfig(4000))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_435_776


@pytest.mark.parametrize(
    "wrong", [{"width": 7}, {"width": 0}, {"num_encoder_layers": 0}, {"num_decoder_layers": 0}]
)
def test_impossible_sizes_are_rejected(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* must be .*, got"):
        RecurrentConfig(20, **wrong)
