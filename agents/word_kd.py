"""Word-level distillation: the teacher's whole distribution on the data's prefixes."""

from dataclasses import dataclass

from textgen_agents.bases import OnDistributions


@dataclass(frozen=True)
class WordKD(OnDistributions):
    """Match the teacher's next-token distribution along gold text.

    Roll-in: data. Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: nothing ("Vanilla + Full" there).

    Source: Kim and Rush 2016, section 3.1, arXiv:1606.07947; Hinton et al. 2015, arXiv:1503.02531.
    """
