import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.divergences import cross_entropy, forward_kl, masked_mean


def random_logits(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=dtype)


def reference_kl(student, teacher):
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    return (p * (p / q).log()).sum(-1)


def test_cross_entropy_of_a_hand_number():
    logits = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4 and 3/4
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(math.log(4))
    assert cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3))


def test_label_smoothing_spreads_its_share_evenly():
    logits = random_logits(0, 5, 7)
    actions = torch.tensor([0, 1, 2, 3, 6])
    log_probs = logits.log_softmax(-1)
    picked = log_probs.gather(-1, actions[:, None]).squeeze(-1)
    expected = -(0.9 * picked + 0.1 * log_probs.mean(-1))
    smoothed = cross_entropy(logits, actions, label_smoothing=0.1).double()
    torch.testing.assert_close(smoothed, expected, rtol=1e-5, atol=1e-6)


def test_forward_kl_of_a_hand_number():
    student = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    teacher = torch.tensor([[0.0, math.log(3.0)]])  # 1/4, 3/4
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert forward_kl(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_forward_kl_equals_float64_reference_in_value_and_gradient():
    student = random_logits(1, 4, 6, 11).requires_grad_()
    teacher = random_logits(2, 4, 6, 11)
    expected = reference_kl(student, teacher)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    actual = forward_kl(student, teacher)
    (gradient,) = torch.autograd.grad(actual.sum(), student)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_forward_kl_has_the_gradient_of_the_soft_cross_entropy():
    student = random_logits(3, 5, 9).requires_grad_()
    teacher = random_logits(4, 5, 9)
    soft = -(teacher.softmax(-1) * student.log_softmax(-1)).sum()
    (expected,) = torch.autograd.grad(soft, student)
    (gradient,) = torch.autograd.grad(forward_kl(student, teacher).sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_forward_kl_to_a_certain_teacher_is_cross_entropy():
    student = random_logits(5, 3, 8)
    actions = torch.tensor([1, 0, 7])
    teacher = torch.full((3, 8), -1e4).scatter(1, actions[:, None], 1e4)
    expected = cross_entropy(student, actions)
    torch.testing.assert_close(forward_kl(student, teacher), expected)


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-100, 100))
def test_forward_kl_is_zero_at_equality_else_positive_and_ignores_shifts(seed, shift):
    student, teacher = random_logits(seed, 2, 5), random_logits(seed + 1, 2, 5)
    assert forward_kl(student, student).abs().max() < 1e-6
    assert forward_kl(student, teacher).min() > 0
    shifted = forward_kl(student + shift, teacher - shift)
    torch.testing.assert_close(shifted, forward_kl(student, teacher), rtol=1e-3, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1))
def test_forward_kl_keeps_pinskers_bound(seed):
    student, teacher = random_logits(seed, 6), random_logits(seed + 1, 6)
    variation = 0.5 * (teacher.softmax(-1) - student.softmax(-1)).abs().sum()
    assert forward_kl(student, teacher) >= 2 * variation**2 - 1e-6


def test_losses_are_float32_whatever_comes_in():
    logits = random_logits(6, 2, 3, 5).bfloat16()
    assert forward_kl(logits, logits).dtype == torch.float32
    assert cross_entropy(logits, torch.zeros(2, 3, dtype=torch.int64)).dtype == torch.float32


def test_masked_mean_has_one_denominator():
    values = torch.tensor([[1.0, 2.0, 99.0], [6.0, float("nan"), float("inf")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx(3.0)


def test_masked_mean_passes_no_gradient_through_what_does_not_count():
    values = torch.tensor([[1.0, float("inf")]], requires_grad=True)
    masked_mean(values, torch.tensor([[True, False]])).backward()
    assert values.grad.tolist() == [[1.0, 0.0]]
