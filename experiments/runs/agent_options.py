"""Parts of an agent that are chosen by name: schedule, label, sampling and divergence.

The command line can set the fields of a part, such as `--agent.beta.base`, but not put another part
in its place. Here that is done before the command line is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from textgen_agents.agent import Agent
from textgen_agents.f_distill import JS, KL, RKL, TVD
from textgen_agents.losses.kl_mixtures import EntropyAwareKL, MixedKL
from textgen_agents.losses.labels import Dense, Sampled, Top1, TopKWithTail
from textgen_agents.rollouts.schedules import (
    Constant,
    Exponential,
    Indicator,
    Linear,
    ReverseSigmoid,
)
from textgen_env.generation.sampling import Sampling
from textgen_experiments.runs.experiment import agent_name

Parts = Mapping[str, Callable[[], object]]

SCHEDULES: Parts = {
    "constant": Constant,
    "linear": Linear,
    "exponential": Exponential,
    "reverse_sigmoid": ReverseSigmoid,
    "indicator": Indicator,
}
LABELS: Parts = {"top1": Top1, "top_k": TopKWithTail, "dense": Dense, "sampled": Sampled}
ROLL_INS: Parts = {"greedy": lambda: None, "sampled": Sampling}
F_DIVERGENCES: Parts = {"kl": KL, "rkl": RKL, "js": JS, "tvd": TVD}
KL_MIXTURES: Parts = {"mixed_kl": MixedKL, "entropy_aware_kl": EntropyAwareKL, "own": lambda: None}
OPTION_FIELDS: Mapping[str, tuple[str, Parts]] = {
    "schedule": ("beta", SCHEDULES),
    "label": ("label", LABELS),
    "roll_in": ("sampling", ROLL_INS),
    "kind": ("kind", F_DIVERGENCES),
    "divergence": ("divergence", KL_MIXTURES),
}
"""Option -> the field of agents that it sets, and the parts to choose from."""


@dataclass(frozen=True)
class Variant:
    """Parts to put in place of an agent's own; their fields are further options.

    Attributes:
        schedule: schedule of `beta`; None for the agent's own, as below.
        label: label that the teacher is asked for at every state.
        roll_in: decoding of the student when it writes.
        kind: the divergence of f_distill.
        divergence: mixture of forward and reverse KL in place of the agent's own divergence.
    """

    schedule: Literal[tuple(SCHEDULES)] | None = None  # pyright: ignore[reportInvalidTypeForm]
    label: Literal[tuple(LABELS)] | None = None  # pyright: ignore[reportInvalidTypeForm]
    roll_in: Literal[tuple(ROLL_INS)] | None = None  # pyright: ignore[reportInvalidTypeForm]
    kind: Literal[tuple(F_DIVERGENCES)] | None = None  # pyright: ignore[reportInvalidTypeForm]
    divergence: Literal[tuple(KL_MIXTURES)] | None = None  # pyright: ignore[reportInvalidTypeForm]


def with_variant(agent: Agent, variant: Variant) -> Agent:
    """Return `agent` with the parts that `variant` names.

    Raises:
        ValueError: the agent has no place for one of them.
    """
    for option, (field, parts) in OPTION_FIELDS.items():
        name = asdict(variant)[option]
        if name is None:
            continue
        kinds = {type(make()) for make in parts.values()}
        if field not in vars(agent) or type(vars(agent)[field]) not in kinds:
            raise ValueError(
                f"{option} must be left out for {agent_name(agent)}, which has none to choose, "
                f"got {name}"
            )
        agent = replace(cast("Any", agent), **{field: parts[name]()})
    return agent
