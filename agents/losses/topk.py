"""Divergences on a few tokens and on the tail, all other tokens taken together as one more.

Because the tail keeps its probability, the shortened distributions are still distributions, and a
divergence of them is one: never negative, and 0 where the k best tokens and the tail have the same
probabilities. A sum over the k best alone is not: moving probability out of them makes it small,
even negative.

In the formulas p is the teacher's distribution and q the student's, as in `divergences`.
"""

import torch
from torch import Tensor

from textgen_agents.losses.divergences import forward_kl
from textgen_env.experts.top_k import TopK


def with_tail(student_logits: Tensor, labels: TopK) -> tuple[Tensor, Tensor]:
    """Return logits of the student and of the teacher for the labels' tokens and the tail.

    Any divergence takes them, for example `reverse_kl(*with_tail(student_logits, labels))`. The
    result is at most the divergence of the whole distributions, because differences within the tail
    do not count.

    Args:
        student_logits: (B, T, V) float, any dtype.
        labels: the teacher's k most probable tokens.

    Returns:
        (B, T, k + 1) float32 each, the student's first; both are log-probabilities, in nats.

    Source: Cover and Thomas 2006, section 2.7 (the log sum inequality), for the bound.
    """
    teacher = torch.cat([labels.log_probs, labels.tail_log_prob[..., None]], -1)
    student = _with_rest(student_logits, labels.tokens)
    # The expert normalizes in this order: equal distributions stay equal to the last digit.
    normalizer = torch.logaddexp(student[..., :-1].logsumexp(-1), student[..., -1])
    return student - normalizer[..., None], teacher


def atkd_split(
    student_logits: Tensor, teacher_logits: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Split forward KL into a divergence about the action and one among all other tokens.

    With a the action and u = 1 - p(a): KL(p || q) = target + u others. ATKD minimizes `others`
    where u is below the median of the batch, and target + others elsewhere, without the factor u.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype; the caller computes it without gradient.
        actions: (...) int64, the tokens written, in [0, V).

    Returns:
        target: (...) float32, nats, >= 0, the divergence of writing the action or not (TCKD).
        others: (...) float32, nats, >= 0, that of the other tokens, which sum to 1 (NCKD).

    Source: Zhong et al. 2024, arXiv:2402.11890; the parts are of Zhao et al. 2022,
        arXiv:2203.08679.
    """
    chosen = actions[..., None]
    student, teacher = _with_rest(student_logits, chosen), _with_rest(teacher_logits, chosen)
    others = forward_kl(_without(student_logits, chosen), _without(teacher_logits, chosen))
    return forward_kl(student, teacher), others


def rest_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """Return the probability of all tokens but one, (...) float32, in [0, 1].

    Args:
        logits: (..., V) float, any dtype.
        actions: (...) int64, the token that is left out, in [0, V).
    """
    return _with_rest(logits, actions[..., None]).softmax(-1)[..., 1]


def log_rest_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """Return the log-probability of all tokens but one, (...) float32, nats.

    Args:
        logits: (..., V) float, any dtype.
        actions: (...) int64, the token that is left out, in [0, V).
    """
    return _with_rest(logits, actions[..., None]).log_softmax(-1)[..., 1]


def _with_rest(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return (..., k + 1) float32 logits of `tokens` (..., k) and, last, of all others together."""
    chosen = logits.float().gather(-1, tokens)
    return torch.cat([chosen, _without(logits, tokens).logsumexp(-1, keepdim=True)], -1)


def _without(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits (..., V) in float32, with -inf at `tokens` (..., k)."""
    return logits.float().scatter(-1, tokens, float("-inf"))
