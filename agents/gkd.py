"""GKD: on-policy distillation with a divergence between forward and reverse KL.

A coin for each batch says whose prefixes are learned from, the data's or the student's own. No
gradient flows through the student's writing. The reinforcement learning that the paper adds is
left out.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from textgen_agents.bases import OnDistributions
from textgen_agents.losses.divergences import Divergence, forward_kl, generalized_jsd, reverse_kl
from textgen_agents.rollouts.behaviors import toss
from textgen_agents.rollouts.rollout import student_or_data
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class GKD(OnDistributions):
    """Match the teacher's next-token distribution on batches of the student's and of the data's.

    Roll-in: a coin for each batch, student with probability `student_fraction`, data otherwise.
    Label: the teacher's distribution. Loss: generalized Jensen-Shannon divergence.
    Differs from the paper in: no reward; the student is what the run starts it from, there one that
    was trained on the data before.

    Attributes:
        student_fraction: probability that the student writes a batch, in [0, 1].
        teacher_weight: of the divergence, in [0, 1]; 0 is forward KL and 1 reverse KL, to which it
            tends once divided by `teacher_weight` and 1 - `teacher_weight`: the scale jumps there.
        sampling: how the student writes.

    Source: Agarwal et al. 2024, algorithm 1, arXiv:2306.13649.
    """

    student_fraction: float = 0.5
    teacher_weight: float = 0.5
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        for name in ("student_fraction", "teacher_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def divergence(self) -> Divergence:
        """What `teacher_weight` says."""
        between = partial(generalized_jsd, teacher_weight=self.teacher_weight)
        return {0.0: forward_kl, 1.0: reverse_kl}.get(self.teacher_weight, between)

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Prefixes by student or data, as one coin says."""
        if not toss(1 - self.student_fraction, 1, generator):
            return super().collect(indices, env, student, progress, generator)
        return student_or_data(
            indices, env, student, beta=0.0, sampling=self.sampling, generator=generator
        )
