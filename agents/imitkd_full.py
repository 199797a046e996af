"""ImitKD + Full: the teacher's whole distribution on the prefixes that the student writes itself.

As ImitKD, but every position of every prefix, the data's too, is labelled with the teacher's
distribution instead of one token.
"""

from dataclasses import dataclass

from textgen_agents.bases import MixedByExample, OnDistributions


@dataclass(frozen=True)
class ImitKDFull(MixedByExample, OnDistributions):
    """Match the teacher's next-token distribution on the student's and the data's prefixes.

    Roll-in: a coin for each example, data with probability beta, student otherwise;
    `batches_per_rollout` batches are written together. Label: the teacher's distribution. Loss:
    forward KL. Differs from the paper in: nothing.

    Source: Lin et al. 2020, algorithm 1 and eq. 6, arXiv:2009.07253.
    """
