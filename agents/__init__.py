"""Registry of the algorithms, one file each.

A further file of this folder needs no line here: it calls `AGENTS.register` after its class.
"""

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.aggrevate import AggreVaTe
from textgen_agents.atkd import ATKD
from textgen_agents.contrastive_markings import ContrastiveMarkings
from textgen_agents.dagger import DAgger
from textgen_agents.distillm import DistiLLM, DistiLLM2
from textgen_agents.distillspec import DistillSpec
from textgen_agents.diverse_cfg import DiverseCFG
from textgen_agents.dskd import DSKD, DSKDWithCMA
from textgen_agents.every_expert import KnowledgeAugmentation, StudentAwareRouter
from textgen_agents.f_distill import FDistill
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKD, ImitKDFull, ImitKDStar, ImitKDStarFull
from textgen_agents.iq_learn import IQLearn
from textgen_agents.kid import KID
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mgsr import MGSR
from textgen_agents.minillm import MiniLLM
from textgen_agents.mle import MLE
from textgen_agents.okd import OKD
from textgen_agents.prompt_internalization import GenPI
from textgen_agents.rollouts.context import Context
from textgen_agents.sampled_reverse_kl import SampledReverseKL
from textgen_agents.scheduled_sampling import ScheduledSampling
from textgen_agents.seqkd import SeqInter, SeqKD, SeqKDFull
from textgen_agents.skd import SKD
from textgen_agents.switch import AdaSwitch, Switch
from textgen_agents.target_side_augmentation import TargetSideAugmentation
from textgen_agents.tvd_plus_plus import TVDPlusPlus
from textgen_agents.uncommonsense import UNcommonsense
from textgen_agents.word_kd import WordKD
from textgen_env.registry import Registry, import_all

__all__ = ["AGENTS", "Agent", "Context", "LabelledBatch", "LearnsFrom"]

AGENTS: Registry[type[Agent]] = Registry(
    "AGENTS", "agent", "textgen.agents", Agent, of_classes=True
)
_IN_ORDER_OF_TABLES: dict[str, type[Agent]] = {
    "mle": MLE,
    "contrastive_markings": ContrastiveMarkings,
    "scheduled_sampling": ScheduledSampling,
    "iq_learn": IQLearn,
    "word_kd": WordKD,
    "okd": OKD,
    "dskd": DSKD,
    "dskd_cma": DSKDWithCMA,
    "seqkd": SeqKD,
    "seqkd_full": SeqKDFull,
    "seqinter": SeqInter,
    "target_side_augmentation": TargetSideAugmentation,
    "genpi": GenPI,
    "imitkd": ImitKD,
    "imitkd_full": ImitKDFull,
    "imitkd_star": ImitKDStar,
    "imitkd_star_full": ImitKDStarFull,
    "dagger": DAgger,
    "uncommonsense": UNcommonsense,
    "distillm": DistiLLM,
    "gkd": GKD,
    "f_distill": FDistill,
    "distillm2": DistiLLM2,
    "skd": SKD,
    "switch": Switch,
    "adaswitch": AdaSwitch,
    "mgsr": MGSR,
    "kid": KID,
    "atkd": ATKD,
    "every_expert_ka": KnowledgeAugmentation,
    "every_expert_sar": StudentAwareRouter,
    "diverse_cfg": DiverseCFG,
    "minillm": MiniLLM,
    "sampled_reverse_kl": SampledReverseKL,
    "aggrevate": AggreVaTe,
    "distillspec": DistillSpec,
    "tvd_plus_plus": TVDPlusPlus,
}
for _name, _agent in _IN_ORDER_OF_TABLES.items():
    AGENTS.register(_name, _agent)
import_all(__name__, __path__)
