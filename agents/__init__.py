"""The algorithms, one file each, by name."""

from agents.agent import Agent
from agents.dagger import DAgger
from agents.distillm import DistiLLM
from agents.imitkd import ImitKD
from agents.imitkd_full import ImitKDFull
from agents.imitkd_star import ImitKDStar
from agents.imitkd_star_full import ImitKDStarFull
from agents.mle import MLE
from agents.seqkd import SeqKD
from agents.seqkd_full import SeqKDFull
from agents.word_kd import WordKD

AGENTS: dict[str, type[Agent]] = {
    "mle": MLE,
    "word_kd": WordKD,
    "seqkd": SeqKD,
    "seqkd_full": SeqKDFull,
    "imitkd": ImitKD,
    "imitkd_full": ImitKDFull,
    "imitkd_star": ImitKDStar,
    "imitkd_star_full": ImitKDStarFull,
    "dagger": DAgger,
    "distillm": DistiLLM,
}
