"""The algorithms, one file each, by name."""

from agents.adaswitch import AdaSwitch
from agents.agent import Agent
from agents.aggrevate import AggreVaTe
from agents.atkd import ATKD
from agents.dagger import DAgger
from agents.distillm import DistiLLM
from agents.distillm2 import DistiLLM2
from agents.f_distill import FDistill
from agents.gkd import GKD
from agents.imitkd import ImitKD
from agents.imitkd_full import ImitKDFull
from agents.imitkd_star import ImitKDStar
from agents.imitkd_star_full import ImitKDStarFull
from agents.iq_learn import IQLearn
from agents.kid import KID
from agents.minillm import MiniLLM
from agents.mle import MLE
from agents.scheduled_sampling import ScheduledSampling
from agents.seqinter import SeqInter
from agents.seqkd import SeqKD
from agents.seqkd_full import SeqKDFull
from agents.skd import SKD
from agents.switch import Switch
from agents.word_kd import WordKD

AGENTS: dict[str, type[Agent]] = {
    "mle": MLE,
    "scheduled_sampling": ScheduledSampling,
    "iq_learn": IQLearn,
    "word_kd": WordKD,
    "seqkd": SeqKD,
    "seqkd_full": SeqKDFull,
    "seqinter": SeqInter,
    "imitkd": ImitKD,
    "imitkd_full": ImitKDFull,
    "imitkd_star": ImitKDStar,
    "imitkd_star_full": ImitKDStarFull,
    "dagger": DAgger,
    "distillm": DistiLLM,
    "gkd": GKD,
    "f_distill": FDistill,
    "distillm2": DistiLLM2,
    "skd": SKD,
    "switch": Switch,
    "adaswitch": AdaSwitch,
    "kid": KID,
    "atkd": ATKD,
    "minillm": MiniLLM,
    "aggrevate": AggreVaTe,
}
