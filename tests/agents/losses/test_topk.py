import pytest
import torch

from textgen_agents.losses.divergences import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skewed_kl,
    total_variation,
)
from textgen_agents.losses.topk import atkd_split, rest_prob, with_tail
from textgen_env.experts.top_k import TopK, top_k_and_tail

INFINITE = float("inf")


def random_logits(seed, *shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def labels_of(teacher_logits, k):
    log_probs, tokens = teacher_logits.double().log_softmax(-1).topk(k)
    rest = teacher_logits.double().log_softmax(-1).scatter(-1, tokens, -INFINITE).logsumexp(-1)
    return TopK(tokens, log_probs.float(), rest.float())


def with_rest(probs, tokens):
    best = probs.gather(-1, tokens)
    return torch.cat([best, probs.scatter(-1, tokens, 0.0).sum(-1, keepdim=True)], -1)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def gradient_of(values, student):
    return torch.autograd.grad(values.sum(), student)[0]


@pytest.mark.parametrize(
    ("divergence", "definition"),
    [
        (forward_kl, kl),
        (reverse_kl, lambda p, q: kl(q, p)),
        (generalized_jsd, lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2),
    ],
)
def test_with_tail_equals_the_definition_in_float64(divergence, definition):
    student, teacher = random_logits(1, 3, 4, 12).requires_grad_(), random_logits(2, 3, 4, 12)
    labels = labels_of(teacher, 3)
    p, q = (with_rest(each.softmax(-1), labels.tokens) for each in (teacher, student))
    expected = definition(p, q)
    values = divergence(*with_tail(student, labels))
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient_of(values, student), gradient_of(expected, student), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("k", range(1, 9))
def test_with_tail_is_a_divergence_below_that_of_the_whole(k):
    student, teacher = random_logits(12, 2, 200, 8), random_logits(13, 2, 200, 8)
    shift = 15 * random_logits(14, 2, 200, 1)
    labels = labels_of(teacher, k)
    assert forward_kl(*with_tail(teacher, labels)).abs().max() < 1e-5
    for divergence in (forward_kl, reverse_kl):
        value = divergence(*with_tail(student + shift, labels))
        whole = divergence(student, teacher)
        assert value.min() > -1e-5
        assert (value <= whole + 1e-3).all()
        if k >= 7:  # the tail is one token, or none
            torch.testing.assert_close(value, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [1, 3, 8, 50])
@pytest.mark.parametrize(
    "divergence", [forward_kl, reverse_kl, generalized_jsd, skewed_kl, total_variation]
)
def test_with_tail_is_exactly_zero_where_both_are_equal(k, divergence):
    """The labels are those of an expert, in float32."""
    logits = random_logits(15, 1, 64, 50).float()
    labels = TopK(**top_k_and_tail(logits, k))
    assert (divergence(*with_tail(logits, labels)) == 0).all()


def test_a_sum_without_the_tail_is_no_divergence():
    """Sums over the k best tokens alone, as other programs compute them, can be negative."""
    teacher = torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]).log()
    labels = labels_of(teacher, 2)
    p = labels.log_probs.exp()
    above = torch.tensor([[[0.6, 0.35, 0.03, 0.02]]])
    below = torch.tensor([[[0.05, 0.03, 0.42, 0.5]]])
    kept_above, kept_below = (each.gather(-1, labels.tokens) for each in (above, below))
    assert kl(p, kept_above).item() < 0
    assert kl(kept_below, p).item() < 0
    assert forward_kl(*with_tail(above.log(), labels)).item() > 0
    assert reverse_kl(*with_tail(below.log(), labels)).item() > 1


def test_descent_on_reverse_kl_restores_the_probability_of_the_k_best():
    teacher = torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]).log()
    labels = labels_of(teacher, 2)
    student = torch.tensor([[[0.05, 0.03, 0.42, 0.5]]]).log().requires_grad_()
    for _ in range(200):
        gradient = gradient_of(reverse_kl(*with_tail(student, labels)), student)
        student = (student - gradient).detach().requires_grad_()
    torch.testing.assert_close(
        with_rest(student.softmax(-1), labels.tokens), torch.tensor([[[0.5, 0.3, 0.2]]]),
        rtol=0, atol=1e-3,
    )  # fmt: skip


def test_atkd_split_adds_up_to_forward_kl_in_value_and_gradient():
    student, teacher = random_logits(7, 4, 6, 11).requires_grad_(), random_logits(8, 4, 6, 11)
    actions = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(9))
    target, others = atkd_split(student, teacher, actions)
    total = target + rest_prob(teacher, actions) * others
    expected = forward_kl(student, teacher)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradient_of(total, student), gradient_of(expected, student), rtol=1e-4, atol=1e-5
    )


def test_atkd_split_equals_the_definition_in_float64():
    student, teacher = random_logits(10, 5, 7).requires_grad_(), random_logits(11, 5, 7)
    actions = torch.tensor([0, 6, 3, 2, 1])
    chosen = actions[:, None]
    p, q = teacher.softmax(-1), student.softmax(-1)
    target = kl(with_rest(p, chosen), with_rest(q, chosen))
    u = 1 - p.gather(-1, chosen).squeeze(-1)
    keep = torch.ones(5, 7).scatter(-1, chosen, 0.0).bool()
    p_others, q_others = p[keep].view(5, 6), q[keep].view(5, 6)
    others = kl(p_others / u[:, None], q_others / q_others.sum(-1, keepdim=True))
    values = atkd_split(student, teacher, actions)
    probability = rest_prob(teacher, actions)
    for ours, expected in zip((*values, probability), (target, others, u), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)
    for ours, expected in zip(values, (target, others), strict=True):
        gradients = (torch.autograd.grad(each.sum(), student, retain_graph=True)[0]
                     for each in (ours, expected))  # fmt: skip
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_atkd_split_is_zero_at_equality_and_ignores_shifts():
    student, teacher = random_logits(15, 200, 6), random_logits(16, 200, 6)
    actions, shift = torch.arange(200) % 6, 15 * random_logits(17, 200, 1)
    target, others = atkd_split(teacher, teacher, actions)
    assert (target == 0).all()
    assert (others == 0).all()
    plain = atkd_split(student, teacher, actions)
    for value, shifted in zip(plain, atkd_split(student + shift, teacher, actions), strict=True):
        torch.testing.assert_close(value, shifted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(
    "student", [[1e4, -1e4, 0.0, 1.0, -INFINITE], [-1e4, 1e4, 2.0, 1.0, -INFINITE]]
)
@pytest.mark.parametrize(
    "teacher", [[-1e4, 1e4, 0.0, 1.0, -INFINITE], [0.0, 1.0, 2.0, 3.0, -INFINITE]]
)
def test_extreme_logits_give_finite_values_and_gradients(student, teacher, k):
    teacher = torch.tensor([[teacher]])
    actions, labels = teacher.argmax(-1), labels_of(teacher, k)
    logits = torch.tensor([[student]], requires_grad=True)
    losses = [
        *(d(*with_tail(logits, labels)) for d in (forward_kl, reverse_kl, generalized_jsd)),
        *atkd_split(logits, teacher, actions),
    ]
    for loss in losses:
        assert loss.isfinite().all()
        gradient = torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]
        assert gradient.isfinite().all()
