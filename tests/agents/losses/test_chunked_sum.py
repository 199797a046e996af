"""Losses in chunks of states: values and gradients of the whole, without its logits."""

from functools import partial

import pytest
import torch

from tests.support.largest_tensor import LargestTensor
from tests.support.toy import Given, random_sources, record
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.losses.chunked_sum import chunked_sum
from textgen_agents.losses.divergences import forward_kl, masked_mean
from textgen_agents.losses.labels import Dense, LabelledBatch, Sampled, Top1, TopKWithTail
from textgen_agents.losses.objectives import loss_by_writer, loss_for, token_loss
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models import hidden_states as module
from textgen_env.models.hidden_states import chunk_rows
from textgen_env.models.transformer import TransformerConfig
from textgen_env.types import Examples, Trajectories, Writer

STATES, WIDTH, VOCAB = 60, 3, 50
LABELS = [Top1(label_smoothing=0.1), TopKWithTail(k=4), Dense()]


@pytest.fixture
def states():
    return torch.randn(STATES, WIDTH, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.randn(VOCAB, WIDTH, dtype=torch.float64))


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 7)
    monkeypatch.setattr(module, "CHUNK_NUMEL_CPU", 7 * VOCAB)


def entropy_of(states, weight):
    log_probs = (states @ weight.T).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum()


@pytest.mark.parametrize("rows", [1, 7, STATES, 1000])
def test_gradients_are_those_of_the_whole(states, weight, rows):
    """Of two kinds of states, with a third between them that has none."""
    factors = torch.rand(STATES, dtype=torch.float64)
    shifts = torch.rand(STATES, 1, dtype=torch.float64, requires_grad=True)
    known = [states, torch.arange(STATES), shifts]

    def loss(parts, chunk):
        part, place, shift = parts
        return entropy_of(part * factors[chunk, None] + shift * (place[:, None] % 3), weight)

    chunks = chunked_sum(loss, known, [weight], rows)
    whole = loss(known, slice(None))
    torch.testing.assert_close(chunks, whole)
    expected, gradients = (
        torch.autograd.grad(3 * each + states.sum(), [states, shifts, weight])
        for each in (whole, chunks)
    )
    torch.testing.assert_close(gradients, expected)


def test_a_weight_that_is_not_read_has_no_gradient(states, weight):
    unread = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    total = chunked_sum(lambda parts, _: entropy_of(*parts, weight), [states], [unread, weight], 9)
    total.backward()
    assert unread.grad is None
    assert weight.grad is not None


def test_two_weights_that_share_a_gradient_keep_their_own(states):
    first, second = (torch.nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64)) for _ in "ab")
    chunked_sum(
        lambda parts, _: (parts[0] + (first + second)).sum(), [states], [first, second], 7
    ).backward()
    for weight in (first, second):
        torch.testing.assert_close(weight.grad, torch.full_like(weight, STATES))


def test_without_gradients_the_value_is_the_same(states, weight):
    def loss(parts, _):
        return entropy_of(*parts, weight)

    with torch.no_grad():
        total = chunked_sum(loss, [states], [weight], 7)
    assert not total.requires_grad
    torch.testing.assert_close(total, entropy_of(states, weight).detach())


def test_a_chunk_has_fewer_states_of_a_larger_vocabulary():
    rows = [chunk_rows(size, torch.device("cpu")) for size in (4_000, 8_000, 1_000_000)]
    assert rows == [262, 131, 64]
    assert chunk_rows(4_000, torch.device("cuda")) > 60 * rows[0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    size = {"width": 16, "num_heads": 2, "feed_forward": 24, "dropout": 0.0}
    return TransformerConfig(VOCAB, **size).build()


@pytest.fixture
def trajectories(model):
    actions = random_sources(12, 9)
    states = Trajectories.from_examples(Examples(random_sources(12, 6), actions), model.special)
    assert not states.mask.all(), "the test wants padding"
    return states


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("label", LABELS, ids=lambda label: type(label).__name__)
def test_an_agents_loss_is_the_same_in_any_chunks(
    label, autocast, model, trajectories, monkeypatch
):
    expert = NeuralExpert(TransformerConfig(VOCAB, 16, 2, 24).build().eval())

    def loss_and_gradients(rows):
        monkeypatch.setattr(module, "MIN_CHUNK_ROWS", rows)
        monkeypatch.setattr(module, "CHUNK_NUMEL_CPU", 1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_for(label, forward_kl, trajectories, model, expert)
        loss.backward()
        return loss.detach(), [weight.grad.clone() for weight in model.parameters()]

    precision = {"rtol": 2e-2, "atol": 1e-3} if autocast else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(loss_and_gradients(7), loss_and_gradients(1000), **precision)


def test_weights_of_actions_hold_in_chunks(model, trajectories, few_rows):
    weights = torch.rand(trajectories.mask.shape)
    weighed = Trajectories(**{**vars(trajectories), "weight": weights})
    logits = model.sequence_logits(trajectories.source, trajectories.actions).double()
    chosen = logits.log_softmax(-1).gather(-1, trajectories.actions[..., None]).squeeze(-1)
    expected = masked_mean(-chosen * weights, trajectories.mask)
    loss = token_loss(weighed, model, trajectories.actions)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_float32_tensor_is_larger_than_a_chunk(few_rows):
    teacher_logits = torch.randn(4, 15, VOCAB).bfloat16()
    student = Given(teacher_logits.flip(0))
    batch = LabelledBatch(record(*[list(range(3, 18))] * 4))
    with LargestTensor() as largest:
        ImitKDFull().loss(batch, student, Given(teacher_logits)).backward()
    assert largest.numel == 7 * VOCAB


LOSSES = {
    "loss_for": partial(loss_for, Dense(), forward_kl),
    "loss_by_writer": partial(loss_by_writer, terms={Writer.DATA: forward_kl}),
}


@pytest.fixture
def large_vocabulary(monkeypatch):
    """Return states, a student and an expert, of whose logits few fit into a chunk."""
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 8)
    monkeypatch.setattr(module, "CHUNK_NUMEL_CPU", 1)
    config = TransformerConfig(400, 16, 2, 24, 1, 1, dropout=0.0)
    student, teacher = config.build(), config.build().eval()
    actions = random_sources(64, 9)
    states = Trajectories.from_examples(Examples(actions, actions), student.special)
    return states, student, NeuralExpert(teacher)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_logits_of_all_states_exist_neither_of_the_student_nor_of_the_teacher(
    loss, large_vocabulary
):
    states, student, expert = large_vocabulary
    with LargestTensor() as largest:
        found = loss(states, student, expert)
        found.backward()
    assert largest.numel < states.mask.sum() * expert.vocab_size / 4
    whole = forward_kl(
        student.sequence_logits(states.source, states.actions), expert.logits(states)
    )
    torch.testing.assert_close(found, masked_mean(whole, states.mask))


@pytest.mark.parametrize("label", [Top1(), TopKWithTail(4), Sampled(4)], ids=str)
def test_labels_are_made_without_logits_of_all_states(label, large_vocabulary):
    states, _, expert = large_vocabulary
    with LargestTensor() as largest:
        label.ask(states, expert)
    assert largest.numel < states.mask.sum() * expert.vocab_size / 4
