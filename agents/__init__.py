"""The algorithms, one file each, by name."""

from agents.agent import Agent
from agents.imitkd import ImitKD
from agents.imitkd_full import ImitKDFull
from agents.mle import MLE
from agents.seqkd import SeqKD
from agents.word_kd import WordKD

AGENTS: dict[str, type[Agent]] = {
    "mle": MLE,
    "word_kd": WordKD,
    "seqkd": SeqKD,
    "imitkd": ImitKD,
    "imitkd_full": ImitKDFull,
}
