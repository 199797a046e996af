"""Gradients of an update: the agent's loss and the terms added to it, over parts and processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from textgen_agents.agent import Agent
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.objectives import token_loss
from textgen_agents.training.answers import checked_loss
from textgen_agents.training.config import LearnerConfig
from textgen_agents.training.distributed import sum_of_processes
from textgen_agents.training.regularizers import EWC, reference_batch
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.models.storage import Model
from textgen_env.types import Examples, Trajectories


@dataclass(frozen=True)
class Gradients:
    """Sum of all gradients of an update, which is left in the parameters that are trained.

    Attributes:
        student: the model that is trained.
        companions: modules that are trained beside it.
        env: gives the expert, the special tokens and the device.
        config: the weights of the terms, and the parts that a batch is cut into.
        precision: dtype of autocast.
        accelerator: of the processes that share the update.
        references: pairs of the term of `LearnerConfig.reference_weight`.
        ewc: penalty of `LearnerConfig.ewc_weight`; None where that is 0.
    """

    student: Model
    companions: nn.ModuleDict
    env: TextGenVectorEnv
    config: LearnerConfig
    precision: torch.dtype
    accelerator: Accelerator
    references: Examples
    ewc: EWC | None

    def add(
        self, agent: Agent, batch: LabelledBatch, update: int
    ) -> tuple[Tensor, int, Mapping[str, float]]:
        """Add all gradients of update number `update`.

        Returns:
            The loss, the number of actions, and the terms added to the agent's loss, by name.
        """
        self.student.train()
        self.companions.train()
        config, added = self.config, {}

        def agent_loss(part: LabelledBatch) -> Tensor:
            expert = part.expert(self.env.expert)
            loss = agent.joint_loss(part, self.student, expert, self.companions)
            return checked_loss(agent, loss)

        loss, tokens = self._add_mean(agent_loss, batch)
        if config.reference_weight:
            references = self.reference_batch(update)
            added["reference_term"], _ = self._add_mean(
                self._reference_loss, references, config.reference_weight
            )
        if self.ewc is not None:
            share = config.ewc_weight / self.accelerator.num_processes
            added["ewc_term"] = self._add_one(share * self.ewc.penalty(self.student))
        if self.accelerator.num_processes > 1:
            for parameter in [*self.student.parameters(), *self.companions.parameters()]:
                if parameter.grad is not None:
                    parameter.grad = self._sum(parameter.grad)
        terms = {name: self._sum(term) for name, term in added.items()}
        return sum(terms.values(), self._sum(loss)), tokens, {n: float(t) for n, t in terms.items()}

    def reference_batch(self, update: int) -> LabelledBatch:
        """Return this process's part of the references that are learned from beside the batch."""
        config, special = self.config, self.env.special
        examples = reference_batch(self.references, config.batch_size, config.seed, update)
        process = self.accelerator
        rows = torch.arange(
            process.process_index, len(examples), process.num_processes, device=self.env.device
        )
        own = examples.select(rows).trimmed(special)
        return LabelledBatch(Trajectories.from_examples(own, special))

    def _add_mean(
        self, loss_of: Callable[[LabelledBatch], Tensor], batch: LabelledBatch, weight: float = 1.0
    ) -> tuple[Tensor, int]:
        """Add the gradients of `weight` times a mean over the batch's counted actions.

        The denominator is the same however the batch is cut into parts and spread over processes.

        Returns:
            This process's share of the value, and the number of actions.
        """
        tokens = self._sum(batch.trajectories.mask.sum())
        total = torch.zeros((), device=self.env.device)
        for rows in torch.arange(len(batch)).tensor_split(self.config.accumulate):
            part = batch.select(rows).trimmed(self.env.special)
            with self._autocast():
                loss = loss_of(part)
            total += self._add_one(weight * loss * (part.trajectories.mask.sum() / tokens))
        return total, int(tokens)

    def _add_one(self, loss: Tensor) -> Tensor:
        """Add the gradients of `loss` and return its value."""
        self.accelerator.backward(loss)
        return loss.detach()

    def _reference_loss(self, part: LabelledBatch) -> Tensor:
        return token_loss(part.trajectories, self.student, part.trajectories.actions)

    def _sum(self, tensor: Tensor) -> Tensor:
        return sum_of_processes(tensor, self.accelerator)

    def _autocast(self) -> torch.autocast:
        """Return PyTorch's context: `accelerate` fixes one precision for a whole process."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.env.device.type, self.precision, enabled=enabled)
