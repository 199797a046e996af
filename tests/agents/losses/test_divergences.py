import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textgen_agents.losses.divergences import (
    LOG_ZERO,
    cross_entropy,
    forward_kl,
    generalized_jsd,
    masked_mean,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from textgen_agents.losses.kl_mixtures import EntropyAwareKL, MixedKL

INFINITE = float("inf")


def random_logits(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=dtype)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def jsd(p, q, w):
    middle = w * p + (1 - w) * q
    return w * kl(p, middle) + (1 - w) * kl(q, middle)


def by_entropy(p, q, w):
    """With a threshold of one nat."""
    unsure = -(p * p.log()).sum(-1) > 1
    return (w * kl(p, q) + (1 - w) * kl(q, p)).where(unsure, kl(q, p))


# Each divergence and its definition on probabilities, p the teacher's and q the student's.
DIVERGENCES = {
    "forward_kl": (forward_kl, kl),
    "reverse_kl": (reverse_kl, lambda p, q: kl(q, p)),
    "jsd": (generalized_jsd, lambda p, q: jsd(p, q, 0.5)),
    "jsd_0.1": (partial(generalized_jsd, teacher_weight=0.1), lambda p, q: jsd(p, q, 0.1)),
    "jsd_0.9": (partial(generalized_jsd, teacher_weight=0.9), lambda p, q: jsd(p, q, 0.9)),
    "skewed_kl": (skewed_kl, lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "skewed_reverse_kl": (skewed_reverse_kl, lambda p, q: kl(q, 0.9 * p + 0.1 * q)),
    "mixed_kl": (MixedKL(0.3), lambda p, q: 0.3 * kl(p, q) + 0.7 * kl(q, p)),
    "entropy_aware_kl": (EntropyAwareKL(1.0), lambda p, q: by_entropy(p, q, 1.0)),
    "entropy_aware_sum": (EntropyAwareKL(1.0, 0.5), lambda p, q: by_entropy(p, q, 0.5)),
    "total_variation": (total_variation, lambda p, q: 0.5 * (p - q).abs().sum(-1)),
}
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def value_and_gradient(divergence, student, teacher):
    student = student.clone().requires_grad_()
    values = divergence(student, teacher)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


@every_divergence
def test_value_and_gradient_equal_the_definition_in_float64(name):
    ours, definition = DIVERGENCES[name]
    student, teacher = random_logits(1, 4, 6, 11), random_logits(2, 4, 6, 11)

    def reference(student_logits, teacher_logits):
        return definition(teacher_logits.softmax(-1), student_logits.softmax(-1))

    expected, expected_gradient = value_and_gradient(reference, student, teacher)
    values, gradient = value_and_gradient(ours, student, teacher)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@every_divergence
def test_divergence_and_gradient_are_zero_at_equality(name):
    logits = random_logits(3, 5, 40)
    values, gradient = value_and_gradient(DIVERGENCES[name][0], logits, logits)
    assert (values == 0).all()
    assert gradient.abs().max() < 1e-6


@every_divergence
def test_divergence_is_positive_elsewhere_and_ignores_shifts(name):
    divergence = DIVERGENCES[name][0]
    student, teacher = random_logits(26, 500, 5) / 3, random_logits(27, 500, 5) / 3
    shift = 30 * random_logits(28, 500, 1)
    value = divergence(student, teacher)
    assert value.min() > 0
    shifted = divergence(student + shift, teacher - shift)
    torch.testing.assert_close(shifted, value, rtol=1e-3, atol=1e-4)


@every_divergence
def test_padded_vocabulary_entries_change_nothing(name):
    divergence = DIVERGENCES[name][0]
    student, teacher = random_logits(4, 3, 7), random_logits(5, 3, 7)
    expected, expected_gradient = value_and_gradient(divergence, student, teacher)
    padding = torch.full((3, 2), -INFINITE)
    values, gradient = value_and_gradient(
        divergence, torch.cat([student, padding], -1), torch.cat([teacher, padding], -1)
    )
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(gradient[:, :7], expected_gradient)
    assert (gradient[:, 7:] == 0).all()


@every_divergence
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 0.0, 1.0]),
        ([1e4, 1e4, -1e4, -1e4], [-1e4, -1e4, -1e4, -1e4]),
        ([0.0, 1.0, 2.0, -INFINITE], [0.0, 1.0, 2.0, 1e4]),
        ([0.0, 1.0, 2.0, 1e4], [0.0, 1.0, 2.0, -INFINITE]),
        ([0.0, 1.0, -INFINITE, -INFINITE], [-INFINITE, -INFINITE, 0.0, 1.0]),
        ([88.0, -88.0, 0.0, -INFINITE], [-88.0, 88.0, -INFINITE, 0.0]),
    ],
)
def test_extreme_logits_give_finite_values_and_gradients(name, student, teacher):
    values, gradient = value_and_gradient(
        DIVERGENCES[name][0], torch.tensor([student]), torch.tensor([teacher])
    )
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@every_divergence
def test_extreme_logits_give_the_right_values(name):
    far_apart = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    expected = {
        "forward_kl": 2e4,
        "reverse_kl": 2e4,
        "jsd": math.log(2),
        "jsd_0.1": -0.1 * math.log(0.1) - 0.9 * math.log(0.9),
        "jsd_0.9": -0.1 * math.log(0.1) - 0.9 * math.log(0.9),
        "skewed_kl": -math.log(0.1),
        "skewed_reverse_kl": -math.log(0.1),
        "mixed_kl": 2e4,
        "entropy_aware_kl": 2e4,
        "entropy_aware_sum": 2e4,
        "total_variation": 1.0,
    }[name]
    assert DIVERGENCES[name][0](*far_apart).item() == pytest.approx(expected, rel=1e-6)


@every_divergence
def test_the_result_is_float32_for_any_dtype(name):
    logits = random_logits(6, 2, 3, 5).bfloat16()
    other = random_logits(7, 2, 3, 5).bfloat16()
    values = DIVERGENCES[name][0](logits, other)
    assert values.dtype == torch.float32
    assert values.shape == (2, 3)
    torch.testing.assert_close(values, DIVERGENCES[name][0](logits.float(), other.float()))


def test_cross_entropy_of_a_hand_number():
    logits = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4 and 3/4
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(math.log(4))
    assert cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3))


def test_cross_entropy_equals_float64_reference_in_value_and_gradient():
    actions, student = torch.tensor([[0, 5], [2, 1]]), random_logits(8, 2, 2, 6)

    def reference(logits, actions):
        return -logits.softmax(-1).log().gather(-1, actions[..., None]).squeeze(-1)

    expected, expected_gradient = value_and_gradient(reference, student, actions)
    values, gradient = value_and_gradient(cross_entropy, student, actions)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    shifted = cross_entropy(student + 100, actions)
    torch.testing.assert_close(shifted, values, rtol=1e-4, atol=1e-4)
    assert values.dtype == torch.float32


def test_cross_entropy_of_extreme_logits_is_finite():
    logits = torch.tensor([[1e4, -1e4, -INFINITE]]).expand(2, 3)
    values, gradient = value_and_gradient(cross_entropy, logits, torch.tensor([0, 1]))
    assert values.tolist() == [0.0, 2e4]
    assert gradient.tolist() == [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]


def test_cross_entropy_on_a_token_that_cannot_be_written_has_a_finite_price():
    logits = torch.tensor([[0.0, 0.0, -INFINITE]])
    value, gradient = value_and_gradient(cross_entropy, logits, torch.tensor([2]))
    assert value.item() == -LOG_ZERO
    assert gradient.isfinite().all()


def test_smoothing_over_padded_entries_has_a_finite_price():
    logits, actions = torch.tensor([[0.0, 0.0, -INFINITE]]), torch.tensor([1])

    def smoothed(logits, actions):
        return cross_entropy(logits, actions, label_smoothing=0.3)

    value, gradient = value_and_gradient(smoothed, logits, actions)
    even = (2 * math.log(2) - LOG_ZERO) / 3
    assert value.item() == pytest.approx(0.7 * math.log(2) + 0.3 * even)
    assert gradient.isfinite().all()


def test_label_smoothing_spreads_its_share_evenly():
    logits = random_logits(0, 5, 7)
    actions = torch.tensor([0, 1, 2, 3, 6])
    log_probs = logits.log_softmax(-1)
    picked = log_probs.gather(-1, actions[:, None]).squeeze(-1)
    expected = -(0.9 * picked + 0.1 * log_probs.mean(-1))
    smoothed = cross_entropy(logits, actions, label_smoothing=0.1).double()
    torch.testing.assert_close(smoothed, expected, rtol=1e-5, atol=1e-6)


def test_hand_numbers_tell_the_directions_apart():
    student = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    teacher = torch.tensor([[0.0, math.log(3.0)]])  # 1/4, 3/4
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    backward = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    middle = 0.5 * 0.25 * math.log(2 / 3) + 0.5 * 0.75 * math.log(6 / 5)
    middle += 0.5 * 0.5 * math.log(4 / 3) + 0.5 * 0.5 * math.log(4 / 5)
    assert forward_kl(student, teacher).item() == pytest.approx(forward, abs=1e-6)
    assert reverse_kl(student, teacher).item() == pytest.approx(backward, abs=1e-6)
    assert generalized_jsd(student, teacher).item() == pytest.approx(middle, abs=1e-6)
    assert total_variation(student, teacher).item() == pytest.approx(0.25)


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
    teacher = torch.full((3, 8), -INFINITE).scatter(1, actions[:, None], 0.0)
    expected = cross_entropy(student, actions)
    torch.testing.assert_close(forward_kl(student, teacher), expected)


def test_a_token_that_only_one_side_can_write_has_a_finite_price():
    can, cannot = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -INFINITE]])
    expected = math.log(0.5) - 0.5 * LOG_ZERO
    assert forward_kl(cannot, can).item() == pytest.approx(expected)
    values, gradient = value_and_gradient(reverse_kl, can, cannot)
    assert values.item() == pytest.approx(expected)
    assert gradient[0, 1] > 0 > gradient[0, 0]  # descent leaves what the teacher cannot write


def test_the_gradient_of_reverse_kl_passes_through_its_weights():
    student, teacher = random_logits(10, 4, 6), random_logits(11, 4, 6)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    expected = log_q.exp() * ((log_q - log_p) - kl(log_q.exp(), log_p.exp())[:, None])
    _, gradient = value_and_gradient(reverse_kl, student, teacher)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_kl_keeps_pinskers_bound():
    student, teacher = random_logits(29, 500, 6), random_logits(30, 500, 6)
    bound = 2 * total_variation(student, teacher) ** 2
    assert (forward_kl(student, teacher) >= bound - 1e-6).all()
    assert (reverse_kl(student, teacher) >= bound - 1e-6).all()


def test_jsd_has_the_kl_divergences_as_scaled_limits_and_vanishes_itself():
    student, teacher = random_logits(12, 8, 9) / 3, random_logits(13, 8, 9) / 3
    small = 1e-3
    towards_forward = generalized_jsd(student, teacher, teacher_weight=small)
    towards_reverse = generalized_jsd(student, teacher, teacher_weight=1 - small)
    kls = forward_kl(student, teacher), reverse_kl(student, teacher)
    torch.testing.assert_close(towards_forward / small, kls[0], rtol=0.1, atol=1e-3)
    torch.testing.assert_close(towards_reverse / small, kls[1], rtol=0.1, atol=1e-3)
    assert (
        towards_forward < 0.01 * kls[0]
    ).all()  # 0 at the ends would be a jump, so they are refused
    for end in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="teacher_weight must be in"):
            generalized_jsd(student, teacher, teacher_weight=end)


@pytest.mark.parametrize("weight", [0.01, 0.3, 0.5, 0.99])
def test_jsd_is_bounded_and_swaps_with_its_weight(weight):
    student, teacher = 5 * random_logits(31, 500, 6), 5 * random_logits(32, 500, 6)
    value = generalized_jsd(student, teacher, teacher_weight=weight)
    assert value.min() > -1e-6
    assert value.max() < math.log(2) + 1e-6
    swapped = generalized_jsd(teacher, student, teacher_weight=1 - weight)
    torch.testing.assert_close(value, swapped, rtol=1e-4, atol=1e-6)


def test_the_weight_of_jsd_converts_to_that_of_other_programs():
    student, teacher = random_logits(24, 5, 7), random_logits(25, 5, 7)
    q, p = student.softmax(-1), teacher.softmax(-1)
    ours = generalized_jsd(student, teacher, teacher_weight=0.1).double()
    lam = 0.9  # DistiLLM's lambda, f-distill's beta
    middle = (1 - lam) * p + lam * q
    theirs = (1 - lam) * kl(p, middle) + lam * kl(q, middle)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    mixed = 0.9 * kl(p, q) + 0.1 * kl(q, p)  # what ATKD's program calls JSD is unbounded
    swapped = 0.1 * kl(middle, p) + 0.9 * kl(middle, q)  # SKD's
    for wrong in (mixed, swapped):
        assert not torch.allclose(ours, wrong, rtol=0.01)


@pytest.mark.parametrize(
    ("skewed", "plain"), [(skewed_kl, forward_kl), (skewed_reverse_kl, reverse_kl)]
)
def test_skew_leads_from_the_plain_divergence_to_zero(skewed, plain):
    student, teacher = random_logits(14, 8, 9), random_logits(15, 8, 9)
    little, all_but = skewed(student, teacher, skew=1e-6), skewed(student, teacher, skew=1 - 1e-6)
    torch.testing.assert_close(little, plain(student, teacher), rtol=1e-2, atol=1e-3)
    assert all_but.abs().max() < 1e-4
    with pytest.raises(ValueError, match="skew must be in"):
        skewed(student, teacher, skew=0.0)


@pytest.mark.parametrize("skewed", [skewed_kl, skewed_reverse_kl])
def test_a_tensor_gives_each_sequence_its_own_skew(skewed):
    student, teacher = random_logits(16, 2, 3, 5), random_logits(17, 2, 3, 5)
    values = skewed(student, teacher, skew=torch.tensor([0.05, 0.3]).view(2, 1, 1))
    torch.testing.assert_close(values[0], skewed(student[0], teacher[0], skew=0.05))
    torch.testing.assert_close(values[1], skewed(student[1], teacher[1], skew=0.3))


def test_total_variation_is_what_speculative_decoding_rejects():
    student, teacher = random_logits(18, 5, 7), random_logits(19, 5, 7)
    q, p = student.softmax(-1), teacher.softmax(-1)
    accepted = (q * (p / q).clamp(max=1)).sum(-1)  # drafts from q, kept with min(1, p / q)
    rejected = total_variation(student, teacher).double()
    torch.testing.assert_close(1 - rejected, accepted, rtol=1e-5, atol=1e-6)


def test_generalized_jsd_equals_the_one_of_trl():
    trl = pytest.importorskip("trl.experimental.gkd", reason="is in the extra bench")
    theirs = partial(trl.GKDTrainer.generalized_jsd_loss, reduction="none")
    student, teacher = random_logits(22, 2, 4, 30).float(), random_logits(23, 2, 4, 30).float()
    for weight in (0.1, 0.5, 0.9):
        expected = theirs(student, teacher, beta=weight).sum(-1)
        values = generalized_jsd(student, teacher, teacher_weight=weight)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    for beta, ours in ((0, forward_kl), (1, reverse_kl)):
        expected = theirs(student, teacher, beta=beta).sum(-1)
        torch.testing.assert_close(ours(student, teacher), expected, rtol=1e-5, atol=1e-6)


def test_masked_mean_has_one_denominator():
    values = torch.tensor([[1.0, 2.0, 99.0], [6.0, float("nan"), float("inf")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx(3.0)


def test_masked_mean_passes_no_gradient_through_what_does_not_count():
    values = torch.tensor([[1.0, float("inf")]], requires_grad=True)
    masked_mean(values, torch.tensor([[True, False]])).backward()
    assert values.grad.tolist() == [[1.0, 0.0]]


@given(seed=st.integers(0, 2**32 - 1), padding=st.integers(0, 4), parts=st.integers(1, 4))
def test_masked_mean_is_the_same_padded_and_accumulated_over_parts(seed, padding, parts):
    values = random_logits(seed, 4, 5).requires_grad_()
    lengths = torch.randint(1, 6, (4,), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(5) < lengths[:, None]
    expected = values.where(mask, 0).sum() / lengths.sum()
    (expected_gradient,) = torch.autograd.grad(expected, values)
    wide = torch.nn.functional.pad(values, (0, padding), value=float("nan"))
    wide_mask = torch.nn.functional.pad(mask, (0, padding))
    total = torch.zeros((), dtype=values.dtype)
    for rows in torch.arange(4).tensor_split(parts):  # as the learner accumulates
        part = masked_mean(wide[rows], wide_mask[rows])
        total = total + part * (wide_mask[rows].sum() / wide_mask.sum())
    (gradient,) = torch.autograd.grad(total, values)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, expected_gradient)
