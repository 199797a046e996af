"""Rollouts: behavior policies, their schedules, and the buffer of labelled trajectories.

The function `rollout` is imported from its file: here it would hide the file of the same name.
"""

from textgen_agents.rollouts.behaviors import Behavior, StepView, Written, token_sampler
from textgen_agents.rollouts.buffer import Buffer
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.schedules import (
    Constant,
    Exponential,
    Indicator,
    Linear,
    ReverseSigmoid,
    Schedule,
)

__all__ = [
    "Behavior",
    "Buffer",
    "Constant",
    "Context",
    "Exponential",
    "Indicator",
    "Linear",
    "ReverseSigmoid",
    "Schedule",
    "StepView",
    "Written",
    "token_sampler",
]
