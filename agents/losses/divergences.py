"""Divergences of next-token distributions: the loss of one action, in nats.

Every function takes the student's logits first and the teacher's second. It computes in float32 and
returns one value for each action, neither masked nor reduced. Two symbols are the same in all
formulas: p is the teacher's distribution and q the student's, both over a vocabulary of V tokens.
KL(a || b) is the sum over V of a (log a - log b).

Logits may be of any size, and -inf where a vocabulary is padded: values and gradients stay finite.
A token with probability 0 has the log-probability `LOG_ZERO`, so that its price is high instead of
infinite.

Means over actions are taken by `masked_mean` alone. Divergences from top-k labels and the two parts
of ATKD's divergence are in `topk`, mixtures of forward and reverse KL in `kl_mixtures`. Nothing
here stops gradients into the teacher: callers compute its logits without gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Function of the student's and the teacher's logits, (..., V) each, that returns (...) float32.

Parameters such as `skew` are fixed by `functools.partial`.
"""

LOG_ZERO = -1e5
"""Log-probability, in nats, of a token that cannot be written.

It is below every log-probability that logits of +-1e4 give, and its exponential is 0 in float32.
"""
LARGEST_LOG_RATIO = 80.0
"""Largest log of a ratio of probabilities, in nats, whose exponential fits into float32."""
CHUNK_ABOVE_NUMEL = 1 << 26
"""Number of logits above which a divergence is computed in chunks.

In float32 they take 256 MiB, and a divergence holds several tensors of this size.
"""


def cross_entropy(
    student_logits: Tensor, actions: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the negative log-likelihood of `actions` under the student.

    With a the action and s the smoothing: -(1 - s) log q(a) - s / V times the sum over V of log q.
    Where the actions are the expert's, it is the loss L_opt of ImitKD.

    Args:
        student_logits: (..., V) float, any dtype.
        actions: (...) int64, in [0, V).
        label_smoothing: s, the share of the target that is spread evenly over V, in [0, 1).

    Returns:
        (...) float32, nats, >= 0.

    Source: Lin et al. 2020, eq. 5, arXiv:2009.07253; label smoothing: Szegedy et al. 2016,
        section 7, arXiv:1512.00567.
    """
    flat = student_logits.flatten(0, -2).float(), actions.flatten()
    losses = F.cross_entropy(*flat, reduction="none").view(actions.shape).clamp(max=-LOG_ZERO)
    if label_smoothing == 0:
        return losses
    uniform = -_log_probs(student_logits).mean(-1)
    return (1 - label_smoothing) * losses + label_smoothing * uniform


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the forward Kullback-Leibler divergence KL(p || q), teacher first.

    The sum over V of p (log p - log q). Its gradient is that of ImitKD's loss L_full, which is this
    divergence plus the teacher's entropy.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype.

    Returns:
        (...) float32, nats, >= 0.

    Source: Lin et al. 2020, eq. 6, arXiv:2009.07253.
    """
    return _kl(_log_probs(teacher_logits), _log_probs(student_logits))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the reverse Kullback-Leibler divergence KL(q || p), student first.

    The sum over V of q (log q - log p). The gradient is exact: it also flows through the weights q.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype.

    Returns:
        (...) float32, nats, >= 0.

    Source: Gu et al. 2024, section 2.1, arXiv:2306.08543; per token as in Agarwal et al. 2024,
        arXiv:2306.13649.
    """
    return _kl(_log_probs(student_logits), _log_probs(teacher_logits))


def generalized_jsd(
    student_logits: Tensor, teacher_logits: Tensor, *, teacher_weight: float = 0.5
) -> Tensor:
    """Compute the weighted Jensen-Shannon divergence of p and q.

    With w the weight and m = w p + (1 - w) q: w KL(p || m) + (1 - w) KL(q || m).

    It vanishes at both ends of w. Divided by w it tends to KL(p || q) as w -> 0, and divided by
    1 - w to KL(q || p) as w -> 1. A learning rate that suits one w does therefore not suit another.
    In other works w is beta (GKD, TRL), 1 - lambda (DistiLLM) or 1 - beta (f-distill).

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype.
        teacher_weight: w, in (0, 1); at the ends use `forward_kl` or `reverse_kl`.

    Returns:
        (...) float32, nats, in [0, ln 2].

    Raises:
        ValueError: `teacher_weight` outside (0, 1).

    Source: Agarwal et al. 2024, eq. 1, arXiv:2306.13649.
    """
    _check_open_interval("teacher_weight", teacher_weight)
    student_weight = 1 - teacher_weight
    with torch.no_grad():
        student, teacher = _log_probs(student_logits), _log_probs(teacher_logits)
        from_teacher = _kl_to_mixture(teacher, student, student_weight)
        log_ratio = _log_ratio_to_mixture(student, teacher, teacher_weight)  # log (q / m)
    # The derivative by q is (1 - w) log (q / m): the terms that come from m cancel out. Holding
    # log (q / m) fixed gives just that, without a backward pass through both divergences.
    from_student = (student_logits.float().softmax(-1) * log_ratio).sum(-1)
    return teacher_weight * from_teacher + student_weight * from_student


def skewed_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, skew: float | Tensor = 0.1
) -> Tensor:
    """Compute the skewed forward KL divergence from p to a mixture of p and q.

    With a the skew: KL(p || a p + (1 - a) q). It tends to KL(p || q) as a -> 0, and to 0 as a -> 1.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype.
        skew: a, in (0, 1). A tensor must broadcast to (..., V), as (B, 1, 1) does, one skew for
            each sequence; its range is not checked.

    Returns:
        (...) float32, nats, in [0, -ln a].

    Raises:
        ValueError: `skew` outside (0, 1).

    Source: Ko et al. 2024, section 3.1, arXiv:2402.03898.
    """
    _check_open_interval("skew", skew)
    return _kl_to_mixture(_log_probs(teacher_logits), _log_probs(student_logits), 1 - skew)


def skewed_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, skew: float | Tensor = 0.1
) -> Tensor:
    """Compute the skewed reverse KL divergence from q to a mixture of q and p.

    With a the skew: KL(q || a q + (1 - a) p). It tends to KL(q || p) as a -> 0, and to 0 as a -> 1.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype.
        skew: a, in (0, 1). A tensor must broadcast to (..., V), as (B, 1, 1) does, one skew for
            each sequence; its range is not checked.

    Returns:
        (...) float32, nats, in [0, -ln a].

    Raises:
        ValueError: `skew` outside (0, 1).

    Source: Ko et al. 2024, section 3.1, arXiv:2402.03898.
    """
    _check_open_interval("skew", skew)
    return _kl_to_mixture(_log_probs(student_logits), _log_probs(teacher_logits), 1 - skew)


def total_variation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the total variation distance of p and q.

    Half the sum over V of |p - q|. It is the probability that speculative decoding rejects a token
    which the student drafts.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype.

    Returns:
        (...) float32, a difference of probabilities and not nats, in [0, 1].

    Source: Wen et al. 2023, section 3, arXiv:2307.15190; acceptance: Zhou et al. 2024,
        arXiv:2310.08461.
    """
    gap = student_logits.float().softmax(-1) - teacher_logits.float().softmax(-1)
    return 0.5 * gap.abs().sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of a distribution, minus the sum over V of p log p.

    Args:
        logits: (..., V) float, any dtype.

    Returns:
        (...) float32, nats, in [0, ln V].

    Source: Shannon 1948, section 6.
    """
    log_probs = _log_probs(logits)
    return -(log_probs.exp() * log_probs).sum(-1)


def chunked(loss: Callable[..., Tensor], *inputs: Tensor, rows: int = 128) -> Tensor:
    """Compute `loss(*inputs)` for a few states at a time, to save memory at large vocabularies.

    Pass hidden states, and a loss that projects them onto the vocabulary itself:

        def loss(hidden, teacher_hidden):
            return forward_kl(student.output(hidden), teacher.output(teacher_hidden))

        chunked(loss, student_hidden, teacher_hidden)

    Logits, and all that is computed from them, then exist for `rows` states only. Nothing is stored
    for the backward pass, which computes each chunk again and costs one more projection onto the
    vocabulary. Where the inputs are logits, in bfloat16 for example, only their float32 copies are
    saved.

    Args:
        loss: maps the rows of each input, (at most `rows`, ...), to (at most `rows`,) float.
        inputs: (B, T, ...) each.
        rows: number of states in a chunk.

    Returns:
        (B, T) float, the values of `loss`.
    """
    chunks = zip(*(each.flatten(0, 1).split(rows) for each in inputs), strict=True)
    losses = [checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(losses).view(inputs[0].shape[:2])


def by_parts(divergence: Divergence, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute `divergence`, in chunks where there are more than `CHUNK_ABOVE_NUMEL` logits.

    Args:
        divergence: any function of this module that takes two tensors of logits.
        student_logits: (B, T, V) float, any dtype.
        teacher_logits: (B, T, V) float, any dtype.

    Returns:
        (B, T) float32, the values of `divergence`.
    """
    if student_logits.numel() <= CHUNK_ABOVE_NUMEL:
        return divergence(student_logits, teacher_logits)
    return chunked(divergence, student_logits, teacher_logits)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean of `values` over the actions that count.

    The sum of the values where `mask` is True, divided by the number of these actions.

    Args:
        values: (B, T) float.
        mask: (B, T) bool with at least one True.

    Returns:
        Scalar of the dtype and unit of `values`; no gradient flows to values that do not count.
    """
    return values.where(mask, 0.0).sum() / mask.sum()


def _log_probs(logits: Tensor) -> Tensor:
    """Return the log-probabilities of `logits`, (..., V) float32, nats, at least `LOG_ZERO`."""
    return logits.float().log_softmax(-1).clamp(min=LOG_ZERO)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Compute KL(first || second) from log-probabilities, (..., V) each."""
    return (first.exp() * (first - second)).sum(-1)


def _kl_to_mixture(first: Tensor, second: Tensor, share: float | Tensor) -> Tensor:
    """Compute KL(first || (1 - share) first + share second) from log-probabilities, (..., V)."""
    return (first.exp() * _log_ratio_to_mixture(first, second, share)).sum(-1)


def _log_ratio_to_mixture(first: Tensor, second: Tensor, share: float | Tensor) -> Tensor:
    """Compute log (first / ((1 - share) first + share second)) from log-probabilities, (..., V).

    This form is exactly 0 where both are equal. Where the ratio is too large for float32, `first`
    is so small that its term of a divergence is 0 whatever the ratio.
    """
    ratio = (second - first).clamp(max=LARGEST_LOG_RATIO)
    return -torch.log1p(share * torch.expm1(ratio))


def _check_open_interval(name: str, value: float | Tensor) -> None:
    """Raise `ValueError` unless the number `value` lies in (0, 1); tensors are not checked."""
    if not isinstance(value, Tensor) and not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value}")
