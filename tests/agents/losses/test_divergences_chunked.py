import pytest
import torch

from tests.support.largest_tensor import LargestTensor
from textgen_agents.losses import divergences
from textgen_agents.losses.divergences import (
    by_parts,
    chunked,
    cross_entropy,
    forward_kl,
    generalized_jsd,
    masked_mean,
)
from textgen_experiments.benchmarks.losses import BenchmarkLossesOptions, benchmark_losses

ROWS, STEPS, WIDTH, VOCAB = 4, 15, 3, 50


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, STEPS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)
    teacher_logits = torch.randn(ROWS, STEPS, VOCAB, generator=generator).bfloat16()
    mask = torch.rand(ROWS, STEPS, generator=generator) < 0.7
    return hidden, weight, teacher_logits, mask


@pytest.mark.parametrize("rows", [1, 7, 60, 1000])
@pytest.mark.parametrize("divergence", [forward_kl, generalized_jsd])
def test_chunks_give_the_values_and_gradients_of_the_whole(parts, divergence, rows):
    hidden, weight, teacher_logits, mask = parts

    def loss(hidden, teacher_logits):
        return divergence(hidden @ weight.T, teacher_logits)

    whole, chunks = loss(hidden, teacher_logits), chunked(loss, hidden, teacher_logits, rows=rows)
    torch.testing.assert_close(chunks, whole)
    expected, gradients = (
        torch.autograd.grad(masked_mean(each, mask), [hidden, weight]) for each in (whole, chunks)
    )
    torch.testing.assert_close(gradients, expected)


def test_chunks_of_token_labels(parts):
    hidden, weight, teacher_logits, _ = parts
    actions = teacher_logits.argmax(-1)
    chunks = chunked(lambda part, labels: cross_entropy(part @ weight.T, labels), hidden, actions)
    torch.testing.assert_close(chunks, cross_entropy(hidden @ weight.T, actions))


def test_no_float32_tensor_is_larger_than_a_chunk(parts):
    hidden, weight, teacher_logits, mask = parts

    def loss(hidden, teacher_logits):
        return forward_kl(hidden @ weight.T, teacher_logits)

    with LargestTensor() as chunks:
        masked_mean(chunked(loss, hidden, teacher_logits, rows=8), mask).backward()
    with LargestTensor() as whole:
        masked_mean(loss(hidden, teacher_logits), mask).backward()
    assert chunks.numel == 8 * VOCAB
    assert whole.numel == ROWS * STEPS * VOCAB


@pytest.mark.parametrize("limit", [0, 1 << 26])
def test_large_divergences_are_computed_in_chunks(parts, limit, monkeypatch):
    """Loss and gradient stay the same for logits in bfloat16, as autocast gives them."""
    monkeypatch.setattr(divergences, "CHUNK_ABOVE_NUMEL", limit)
    monkeypatch.setattr(divergences.chunked, "__kwdefaults__", {"rows": 8})
    _, _, teacher_logits, mask = parts
    student_logits = teacher_logits.flip(0).requires_grad_()
    with LargestTensor() as largest:
        loss = masked_mean(by_parts(forward_kl, student_logits, teacher_logits), mask)
        loss.backward()
    assert largest.numel == (ROWS * STEPS if limit else 8) * VOCAB
    exact = student_logits.detach().double().requires_grad_()
    expected = masked_mean(reference_kl(exact, teacher_logits.double()), mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    torch.testing.assert_close(student_logits.grad.double(), exact.grad, rtol=2e-2, atol=1e-4)


def reference_kl(student_logits, teacher_logits):
    p, q = teacher_logits.softmax(-1), student_logits.softmax(-1)
    return (p * (p / q).log()).sum(-1)


@pytest.mark.slow
def test_the_benchmark_reports_less_memory_and_equal_gradients(capsys):
    benchmark_losses(BenchmarkLossesOptions((20_000,), states=512, width=8, rows=16))
    lines = capsys.readouterr().out.splitlines()
    whole, chunks = [line.split("│")[3:7] for line in lines if "│" in line]
    assert float(chunks[0]) < 0.5 * float(whole[0])
    assert float(chunks[3]) < 1e-4
