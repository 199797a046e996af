"""Mixtures of forward and reverse KL: everywhere by one weight, or by the teacher's entropy.

Forward KL makes the student cover all that the teacher might write, reverse KL makes it write only
what the teacher would. Each mixture is a `Divergence` and a part of a configuration: an agent takes
it as the value of a field. p is the teacher's distribution and q the student's.
"""

from dataclasses import dataclass

from torch import Tensor

from textgen_agents.losses.divergences import entropy, forward_kl, reverse_kl
from textgen_env.bounds import check_at_least, check_shares


@dataclass(frozen=True)
class MixedKL:
    """Sum of forward and reverse KL, w KL(p || q) + (1 - w) KL(q || p).

    At 1/2 it is half of Jeffreys' divergence.

    Attributes:
        forward_weight: w, in [0, 1].

    Source: Jeffreys 1946, "An invariant form for the prior probability".
    """

    forward_weight: float = 0.5

    def __post_init__(self) -> None:
        check_shares(self, "forward_weight")

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the divergence, (...) float32, nats, at least 0, of (..., V) logits."""
        forward = forward_kl(student_logits, teacher_logits)
        return forward.lerp(reverse_kl(student_logits, teacher_logits), 1 - self.forward_weight)


@dataclass(frozen=True)
class EntropyAwareKL:
    """Forward KL where the teacher is unsure, reverse KL where it is not.

    Where the teacher's entropy is above the threshold it is w KL(p || q) + (1 - w) KL(q || p),
    elsewhere KL(q || p).

    Attributes:
        threshold: nats, at least 0. The constant is a choice of ours: one nat is the entropy of
            about three tokens that are equally probable.
        forward_weight: w, in [0, 1]. At 1 forward KL takes the place of reverse KL; at 1/2 it is
            added to it, up to a factor.

    Source: Jin et al. 2026, arXiv:2603.07079.
    """

    threshold: float = 1.0
    forward_weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, threshold=0)
        check_shares(self, "forward_weight")

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the divergence, (...) float32, nats, at least 0, of (..., V) logits."""
        unsure = entropy(teacher_logits) > self.threshold
        mixed = MixedKL(self.forward_weight)(student_logits, teacher_logits)
        return mixed.where(unsure, reverse_kl(student_logits, teacher_logits))


KLMixture = MixedKL | EntropyAwareKL
