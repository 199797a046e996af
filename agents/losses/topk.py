"""Divergences on a few tokens and all others together as one more, the tail.

With the tail's probability kept, what is left of two distributions is still two distributions, and
a divergence of them is one: never negative, 0 where the teacher's k best and the rest have the same
probabilities. Compared on the k best alone it can be made small, even negative, by moving
probability out of them.
"""

import torch
from torch import Tensor

from textgen_agents.losses.divergences import forward_kl
from textgen_env.experts.expert import TopK


def with_tail(student_logits: Tensor, labels: TopK) -> tuple[Tensor, Tensor]:
    """Logits of the student and of the teacher for the labels' tokens and the tail.

    Any divergence takes them: `reverse_kl(*with_tail(student_logits, labels))`. It is at most that
    of the whole distributions, because what differs within the tail is not seen.

    Args:
        student_logits: (B, T, V) float, any dtype.
        labels: the teacher's k most probable tokens.

    Returns:
        (B, T, k + 1) float32 each, the student's first.

    Source: Cover and Thomas 2006, section 2.7 (the log sum inequality), for the bound.
    """
    teacher = torch.cat([labels.log_probs, labels.tail_log_prob[..., None]], -1)
    student = _buckets(student_logits, labels.tokens)
    # Normalized as the expert does it, so that equal distributions are equal to the last digit.
    normalizer = torch.logaddexp(student[..., :-1].logsumexp(-1), student[..., -1])
    return student - normalizer[..., None], teacher


def atkd_split(
    student_logits: Tensor, teacher_logits: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward KL in two parts, about the action written and among all others.

    With u = 1 - p(action): `forward_kl` = target + u others. ATKD teaches `others` where u is below
    the median of the batch, and target + others elsewhere, without the factor u.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.
        actions: (...) int64, the tokens written.

    Returns:
        target: (...) float32, nats, >= 0, the divergence of writing the action or not (TCKD).
        others: (...) float32, nats, >= 0, that of the other tokens, made to sum to 1 (NCKD).
        uncertainty: (...) float32, u, in [0, 1].

    Source: Zhong et al. 2024, arXiv:2402.11890; the parts are of Zhao et al. 2022,
        arXiv:2203.08679.
    """
    chosen = actions[..., None]
    student, teacher = _buckets(student_logits, chosen), _buckets(teacher_logits, chosen)
    others = forward_kl(_without(student_logits, chosen), _without(teacher_logits, chosen))
    return forward_kl(student, teacher), others, teacher.softmax(-1)[..., 1]


def _buckets(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits (..., k + 1) of `tokens` (..., k) and, last, of all others together."""
    chosen = logits.float().gather(-1, tokens)
    return torch.cat([chosen, _without(logits, tokens).logsumexp(-1, keepdim=True)], -1)


def _without(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits (..., V), float32, with -inf at `tokens` (..., k)."""
    return logits.float().scatter(-1, tokens, float("-inf"))
