"""Regularizers that keep any agent's student good on the data's prefixes.

A student that learns on its own prefixes may forget what it could do on the data's. There are two
remedies: keep learning the references' tokens there (`reference_batch`), or penalize changes of
weights that matter there (`EWC`). Both use the task's own pairs, those with references, even where
an agent learns from texts of the teacher. The learner adds them to the agent's loss. The first is
a mean over its own actions, whatever the denominator of the agent's loss.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch
from torch import Tensor, nn

from textgen_agents.losses.divergences import cross_entropy
from textgen_agents.rollouts.batches import (
    batch_indices,
    example_lengths,
    generator_for,
    seed_of,
)
from textgen_agents.training.checkpoint import select_prefix
from textgen_agents.training.config import LearnerConfig
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.models.storage import Model
from textgen_env.types import Examples, SpecialTokens, Trajectories

FISHER_BATCHES = 100
"""Number of batches from which the Fisher information is estimated.

Each batch gives a scaled chi-square variable of one degree of freedom for a weight. The mean of 100
has a relative standard error of about 14 %.
"""


@dataclass(frozen=True)
class References:
    """The task's own pairs, which a learner looks at whatever its agent learns from.

    Attributes:
        train: pairs of the terms that `LearnerConfig` may add to the agent's loss, all of which
            have references; None for those of the environment's examples.
        validation: pairs whose cross-entropy is logged, and told to the agent, at each evaluation;
            None for no such loss.
    """

    train: Examples | None = None
    validation: Examples | None = None

    def train_pairs(self, env: TextGenVectorEnv, config: LearnerConfig) -> Examples:
        """Return the training pairs, on the environment's device.

        Raises:
            ValueError: there is none, and `config` adds a term that learns from them.
        """
        if self.train is not None:
            return self.train.to(env.device)
        known = env.examples.has_reference(env.special)
        if not known.any() and (config.reference_weight or config.ewc_weight):
            raise ValueError(
                "reference_weight and ewc_weight must be 0 where no example has a reference, got "
                f"{config.reference_weight} and {config.ewc_weight}: add pairs with references"
            )
        return env.examples if known.all() else env.examples.select(known.nonzero().squeeze(1))


NO_REFERENCES = References()


def reference_batch(pairs: Examples, rows: int, seed: int, update: int) -> Examples:
    """Draw `rows` of the task's pairs uniformly, as a function of `seed` and `update` alone."""
    draws = generator_for(seed, "gold", update)  # another name would give other draws
    return pairs.select(torch.randint(len(pairs), (rows,), generator=draws).to(pairs.source.device))


@dataclass(frozen=True)
class EWC:
    """Elastic weight consolidation: the weights at the start and their importance.

    Attributes:
        start: the weights at the start, by name.
        fisher: diagonal of the Fisher information of each weight, from `diagonal_fisher`.
    """

    start: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build the penalty from the tensors of `ewc_tensors`."""
        return cls(select_prefix("start.", tensors), select_prefix("fisher.", tensors))

    def penalty(self, student: nn.Module) -> Tensor:
        """Compute half the sum over all weights w of fisher (w - start)^2, nats an action.

        For a small change of one weight it is the mean KL(start || student) over the data's states,
        to second order. Its coefficient is therefore on the scale of a loss.

        Source: Kirkpatrick et al. 2017, eq. 3, arXiv:1612.00796; for text generation:
            arXiv:2109.06308.
        """
        weights = dict(student.named_parameters())
        terms = [
            (fisher * (weights[name] - self.start[name]).square()).sum()
            for name, fisher in self.fisher.items()
        ]
        return 0.5 * torch.stack(terms).sum()


def ewc_tensors(student: Model, pairs: Examples, rows: int, seed: int) -> dict[str, Tensor]:
    """Return the tensors of `EWC` for the present weights of `student`, ready for a file.

    Args:
        student: set to training mode, so that dropout acts as it does in training.
        pairs: the task's pairs.
        rows: number of examples whose gradients are computed together.
        seed: seed of the run.
    """
    student.train()
    torch.manual_seed(seed_of(seed, "dropout of fisher", 0))
    draws = torch.Generator(pairs.source.device).manual_seed(seed_of(seed, "fisher", 0))
    batches = islice(_reference_batches(pairs, student.special, rows, seed), FISHER_BATCHES)
    fisher = diagonal_fisher(student, batches, draws)
    start = {f"start.{name}": student.get_parameter(name) for name in fisher}
    return start | {f"fisher.{name}": value for name, value in fisher.items()}


def _reference_batches(
    pairs: Examples, special: SpecialTokens, rows: int, seed: int
) -> Iterator[Trajectories]:
    """Yield trajectories of the references in batches, without end."""
    for indices in batch_indices(example_lengths(pairs, special), rows, seed):
        examples = pairs.select(indices.to(pairs.source.device)).trimmed(special)
        yield Trajectories.from_examples(examples, special)


def diagonal_fisher(
    student: Model, batches: Iterable[Trajectories], generator: torch.Generator
) -> dict[str, Tensor]:
    """Estimate the diagonal of the Fisher information of the student's weights.

    For each weight w: the mean over states of E[(d log q(v) / d w)^2]. Here q is the student's
    distribution and v a token drawn from it.

    One token is drawn at each state, and each batch costs one backward pass. Gradients of these
    log-probabilities are independent between states and 0 in expectation. The square of their sum
    is therefore, in expectation, the sum of their squares.

    Args:
        student: in training mode for dropout, in evaluation mode without.
        batches: the states, at least one.
        generator: generator of the draws, on the student's device.

    Returns:
        Estimate for each weight, by its name, >= 0.
    """
    weights = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    states = 0
    for batch in batches:
        logits = student.sequence_logits(batch.source, batch.actions).float()
        probabilities = logits.detach().softmax(-1).flatten(0, 1)
        drawn = probabilities.multinomial(1, generator=generator).view_as(batch.actions)
        log_prob = -cross_entropy(logits, drawn).where(batch.mask, 0.0).sum()
        gradients = torch.autograd.grad(log_prob, list(weights.values()), materialize_grads=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += gradient.square()
        states += int(batch.mask.sum())
    return {name: total / states for name, total in sums.items()}
