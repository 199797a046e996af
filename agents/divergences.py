"""Losses of one action: per token, unreduced, unmasked, in nats, computed in float32.

The student's logits come first, the teacher's second. `masked_mean` is the one place where a mean
is taken.
"""

import torch.nn.functional as F
from torch import Tensor


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
    losses = F.cross_entropy(
        student_logits.flatten(0, -2).float(),
        actions.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(actions.shape)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher, KL(teacher || student).

    With p the teacher and q the student: sum over V of p (log p - log q). Its gradient is that of
    the paper's L_full, which lacks the teacher's entropy.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float; the caller computes it without gradient.

    Returns:
        (...) float32, nats, >= 0.

    Source: Lin et al. 2020, eq. 6, arXiv:2009.07253.
    """
    teacher = teacher_logits.float().log_softmax(-1)
    student = student_logits.float().log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is True: sum over counted actions / number of counted actions.

    Args:
        values: (B, T) float.
        mask: (B, T) bool with at least one True.
    """
    return values.where(mask, 0.0).sum() / mask.sum()
