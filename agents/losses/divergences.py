"""Losses of one action: per token, unreduced, unmasked, in nats, computed in float32.

The student's logits come first, the teacher's second; in the formulas p is the teacher and q the
student. `masked_mean` is the one place where a mean is taken. Divergences of top-k labels and
ATKD's split are in `divergences_topk`.

Logits may be as large as they like, and -inf where a vocabulary was padded: values and gradients
stay finite. What only one side can write counts as having the log-probability `LOG_ZERO` on the
other, a high price instead of an infinite one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From the student's and the teacher's logits (..., V) to (...); `functools.partial` fixes more."""

LOG_ZERO = -1e5  # nats; below all that logits of +-1e4 can give, and 0 as a probability
LARGEST_LOG_RATIO = 80.0  # whose exponential float32 still holds
CHUNK_ABOVE_NUMEL = (
    1 << 26
)  # logits: 256 MiB in float32, of which a divergence makes several copies


def cross_entropy(
    student_logits: Tensor, actions: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood of `actions`: the paper's L_opt where they are the expert's.

    Args:
        student_logits: (..., V) float, any dtype.
        actions: (...) int64, in [0, V).
        label_smoothing: share of the target spread evenly over V, in [0, 1).

    Returns:
        (...) float32, nats, >= 0.

    Source: Lin et al. 2020, eq. 5, arXiv:2009.07253; label smoothing: Szegedy et al. 2016,
        section 7, arXiv:1512.00567.
    """
    flat = student_logits.flatten(0, -2).float(), actions.flatten()
    losses = F.cross_entropy(*flat, reduction="none").view(actions.shape).clamp(max=-LOG_ZERO)
    if label_smoothing == 0:
        return losses
    even = -_log_probs(student_logits).mean(-1)
    return (1 - label_smoothing) * losses + label_smoothing * even


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher, KL(teacher || student).

    The sum over V of p (log p - log q). Its gradient is that of the paper's L_full, which lacks
    the teacher's entropy.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.

    Returns:
        (...) float32, nats, >= 0.

    Source: Lin et al. 2020, eq. 6, arXiv:2009.07253.
    """
    return _kl(_log_probs(teacher_logits), _log_probs(student_logits))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the teacher from the student, KL(student || teacher).

    The sum over V of q (log q - log p), with the exact gradient, also through the weights q.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.

    Returns:
        (...) float32, nats, >= 0.

    Source: Gu et al. 2024, section 2.1, arXiv:2306.08543; per token as in Agarwal et al. 2024,
        arXiv:2306.13649.
    """
    return _kl(_log_probs(student_logits), _log_probs(teacher_logits))


def generalized_jsd(
    student_logits: Tensor, teacher_logits: Tensor, *, teacher_weight: float = 0.5
) -> Tensor:
    """Weighted Jensen-Shannon divergence of two next-token distributions.

    With w the weight and m = w p + (1 - w) q: w KL(p || m) + (1 - w) KL(q || m). It vanishes at
    both ends: divided by w it tends to KL(p || q) as w -> 0, divided by 1 - w to KL(q || p) as
    w -> 1. A learning rate found for one w is therefore not one for another. Elsewhere w is called:
    GKD's and TRL's beta; 1 - lambda in DistiLLM; 1 - beta in f-distill.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.
        teacher_weight: w in (0, 1); at the ends use `forward_kl` or `reverse_kl`.

    Returns:
        (...) float32, nats, in [0, ln 2].

    Raises:
        ValueError: `teacher_weight` outside (0, 1).

    Source: Agarwal et al. 2024, eq. 1, arXiv:2306.13649.
    """
    _check_inside("teacher_weight", teacher_weight)
    other = 1 - teacher_weight
    with torch.no_grad():
        student, teacher = _log_probs(student_logits), _log_probs(teacher_logits)
        from_teacher = _kl_to_mixture(teacher, student, other)
        over_mixture = _log_over_mixture(student, teacher, teacher_weight)
    # The gradient's parts through m cancel out. What is left is that of KL(q || m), log (q / m)
    # held fixed: half of the time that going back through both terms takes.
    from_student = (student_logits.float().softmax(-1) * over_mixture).sum(-1)
    return teacher_weight * from_teacher + other * from_student


def skewed_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, skew: float | Tensor = 0.1
) -> Tensor:
    """KL(teacher || skew * teacher + (1 - skew) * student): forward KL as skew -> 0, 0 as -> 1.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.
        skew: in (0, 1); a tensor, one for each sequence (B, 1, 1) say, is not checked.

    Returns:
        (...) float32, nats, in [0, -ln skew].

    Raises:
        ValueError: `skew` outside (0, 1).

    Source: Ko et al. 2024, section 3.1, arXiv:2402.03898.
    """
    _check_inside("skew", skew)
    return _kl_to_mixture(_log_probs(teacher_logits), _log_probs(student_logits), 1 - skew)


def skewed_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, skew: float | Tensor = 0.1
) -> Tensor:
    """KL(student || skew * student + (1 - skew) * teacher): reverse KL as skew -> 0, 0 as -> 1.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.
        skew: in (0, 1); a tensor, one for each sequence (B, 1, 1) say, is not checked.

    Returns:
        (...) float32, nats, in [0, -ln skew].

    Raises:
        ValueError: `skew` outside (0, 1).

    Source: Ko et al. 2024, section 3.1, arXiv:2402.03898.
    """
    _check_inside("skew", skew)
    return _kl_to_mixture(_log_probs(student_logits), _log_probs(teacher_logits), 1 - skew)


def total_variation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half the sum over V of |p - q|; speculative decoding accepts 1 minus that of the drafts.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.

    Returns:
        (...) float32, a difference of probabilities and not nats, in [0, 1].

    Source: Wen et al. 2023, section 3, arXiv:2307.15190; acceptance: Zhou et al. 2024,
        arXiv:2310.08461.
    """
    gap = student_logits.float().softmax(-1) - teacher_logits.float().softmax(-1)
    return 0.5 * gap.abs().sum(-1)


def chunked(loss: Callable[..., Tensor], *inputs: Tensor, rows: int = 128) -> Tensor:
    """`loss(*inputs)`, a few states at a time: for vocabularies too large for (B, T, V).

    Give it hidden states, and a loss that projects them onto the vocabulary itself:

        def loss(hidden, teacher_hidden):
            return forward_kl(student.output(hidden), teacher.output(teacher_hidden))

        chunked(loss, student_hidden, teacher_hidden)

    Then logits and all that is computed from them exist for `rows` states only: nothing is kept for
    the gradient, it is computed again. That costs time, one more projection onto the vocabulary.
    Of logits given as inputs, in bfloat16 say, only the float32 copies are saved.

    Args:
        loss: from each input's rows (at most `rows`, ...) to (at most `rows`,) float.
        inputs: (B, T, ...) each.
        rows: states at a time.

    Returns:
        (B, T) float, as `loss` gives it.
    """
    parts = zip(*(whole.flatten(0, 1).split(rows) for whole in inputs), strict=True)
    losses = [checkpoint(loss, *part, use_reentrant=False) for part in parts]
    return torch.cat(losses).view(inputs[0].shape[:2])


def by_parts(divergence: Divergence, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """`divergence`, in chunks where float32 copies of all logits would be large.

    Args:
        divergence: of the student from the teacher.
        student_logits: (B, T, V) float, any dtype.
        teacher_logits: (B, T, W) float.

    Returns:
        (B, T) float32, as `divergence` gives it.
    """
    if student_logits.numel() <= CHUNK_ABOVE_NUMEL:
        return divergence(student_logits, teacher_logits)
    return chunked(divergence, student_logits, teacher_logits)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is True: sum over counted actions / number of counted actions.

    Args:
        values: (B, T) float.
        mask: (B, T) bool with at least one True.
    """
    return values.where(mask, 0.0).sum() / mask.sum()


def _log_probs(logits: Tensor) -> Tensor:
    """(..., V) float32, nats, finite."""
    return logits.float().log_softmax(-1).clamp(min=LOG_ZERO)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of log-probabilities (..., V)."""
    return (first.exp() * (first - second)).sum(-1)


def _kl_to_mixture(first: Tensor, second: Tensor, share: float | Tensor) -> Tensor:
    """KL(first || (1 - share) first + share second) of log-probabilities (..., V)."""
    return (first.exp() * _log_over_mixture(first, second, share)).sum(-1)


def _log_over_mixture(first: Tensor, second: Tensor, share: float | Tensor) -> Tensor:
    """The logarithm of first / ((1 - share) first + share second), of log-probabilities.

    In this form it is exactly 0 where both are equal. Where the ratio is too large for float32,
    `first` is so small that its term is 0 whatever the ratio.
    """
    ratio = (second - first).clamp(max=LARGEST_LOG_RATIO)
    return -torch.log1p(share * torch.expm1(ratio))


def _check_inside(name: str, value: float | Tensor) -> None:
    if not isinstance(value, Tensor) and not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value}")
