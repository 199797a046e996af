"""ImitKD* + Full: ImitKD + Full that starts from the teacher's texts instead of the references."""

from dataclasses import dataclass

from textgen_agents.bases import MixedByExample, OnDistributions, OnTeacherText


@dataclass(frozen=True)
class ImitKDStarFull(OnTeacherText, MixedByExample, OnDistributions):
    """Match the teacher's next-token distribution on the student's prefixes and its own.

    Roll-in: a coin for each example, the teacher's text with probability beta, student otherwise.
    Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: one schedule for all data sets (there base 2 for WMT, 10 for CNN/DM).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """
