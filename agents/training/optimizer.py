"""Optimizer of a run: the student's weights, and those of the modules trained beside it."""

import torch
from torch import nn

from textgen_agents.training.config import LearnerConfig
from textgen_env.models.storage import Model

FACTOR = "rate_factor"
"""Entry of a parameter group: its learning rate as a multiple of the student's."""


def make_optimizer(
    student: Model, companions: nn.ModuleDict, config: LearnerConfig, companion_rate_factor: float
) -> torch.optim.AdamW:
    """Return AdamW over the student's weights and, in a group of their own, the companions'.

    Args:
        student: the model that is trained.
        companions: modules from `Agent.companions`; none where it is empty.
        config: gives the learning rate and the weight decay.
        companion_rate_factor: learning rate of the companions, as a multiple of the student's.
    """
    groups = [{"params": list(student.parameters()), FACTOR: 1.0}]
    beside = list(companions.parameters())
    if beside:
        groups.append({"params": beside, FACTOR: companion_rate_factor})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the student's learning rate to `rate`, and the companions' to its multiple."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR]


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return all parameters that the optimizer changes, the student's first."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
