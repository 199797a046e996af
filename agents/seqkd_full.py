"""Sequence- and word-level distillation: the teacher's distribution along its own texts."""

from dataclasses import dataclass

from textgen_agents.bases import OnDistributions, OnTeacherText


@dataclass(frozen=True)
class SeqKDFull(OnTeacherText, OnDistributions):
    """Match the teacher's next-token distribution along what its beam search writes.

    Roll-in: the teacher's written text as data. Label: the teacher's distribution.
    Loss: forward KL.
    Differs from the paper in: nothing ("SeqKD + Full" there).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """
