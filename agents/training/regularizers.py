"""What can be added to any agent's loss so that the student stays good on the data's prefixes.

Who learns on prefixes of its own may forget what it could do on correct ones. Two remedies: to go
on learning the references' tokens there (`reference_batch`), or to hold on to the weights that
matter there (`EWC`). Both look at the task's own pairs, also where an agent learns from texts that
the teacher has written. The learner adds them; the first is a mean over its own actions, whatever
the agent's loss is a mean over.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch
from torch import Tensor, nn

from textgen_agents.losses.divergences import cross_entropy
from textgen_agents.rollouts.batches import batch_indices, generator_for, seed_of
from textgen_agents.training.checkpoint import select_prefix
from textgen_env.models.storage import Model
from textgen_env.types import Examples, SpecialTokens, Trajectories

FISHER_BATCHES = 100  # a chi-square variable each: a weight's Fisher information to about 14 %


def reference_batch(gold: Examples, rows: int, seed: int, update: int) -> Examples:
    """`rows` of the task's pairs for one update, drawn evenly: the same whenever asked for."""
    draws = generator_for(seed, "gold", update)
    return gold.select(torch.randint(len(gold), (rows,), generator=draws).to(gold.source.device))


@dataclass(frozen=True)
class EWC:
    """Elastic weight consolidation: what a student started with, and how much of it matters.

    Attributes:
        start: each weight by name.
        fisher: for each the diagonal of the Fisher information, as `diagonal_fisher` gives it.
    """

    start: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `ewc_tensors` gave."""
        return cls(select_prefix("start.", tensors), select_prefix("fisher.", tensors))

    def penalty(self, student: nn.Module) -> Tensor:
        """Half the sum over all weights w of fisher (w - start)^2, scalar, nats an action.

        To second order in the change of one weight it is the mean KL(start || student) over the
        data's states, which is why its weight compares with that of a loss.

        Source: Kirkpatrick et al. 2017, eq. 3, arXiv:1612.00796; on text that a student continues:
            arXiv:2109.06308.
        """
        weights = dict(student.named_parameters())
        terms = [
            (fisher * (weights[name] - self.start[name]).square()).sum()
            for name, fisher in self.fisher.items()
        ]
        return 0.5 * torch.stack(terms).sum()


def ewc_tensors(student: Model, gold: Examples, rows: int, seed: int) -> dict[str, Tensor]:
    """What `EWC` is made of, to be kept in a file, of `student` as it is.

    Args:
        student: in training mode afterwards, as it is here: dropout acts as it will in training.
        gold: the data.
        rows: examples whose gradients are computed together.
        seed: of the run.
    """
    student.train()
    torch.manual_seed(seed_of(seed, "dropout of fisher", 0))
    draws = torch.Generator(gold.source.device).manual_seed(seed_of(seed, "fisher", 0))
    batches = islice(_data_batches(gold, student.special, rows, seed), FISHER_BATCHES)
    fisher = diagonal_fisher(student, batches, draws)
    start = {f"start.{name}": student.get_parameter(name) for name in fisher}
    return start | {f"fisher.{name}": value for name, value in fisher.items()}


def _data_batches(
    gold: Examples, special: SpecialTokens, rows: int, seed: int
) -> Iterator[Trajectories]:
    """Endless batches of the data."""
    lengths = (gold.reference != special.pad).sum(1).cpu()
    for indices in batch_indices(lengths, rows, seed):
        examples = gold.select(indices.to(gold.source.device)).trimmed(special)
        yield Trajectories.from_examples(examples, special)


def diagonal_fisher(
    student: Model, batches: Iterable[Trajectories], generator: torch.Generator
) -> dict[str, Tensor]:
    """The mean over states of E[(d log q(v) / d w)^2] for each weight w, where v is drawn from q.

    One backward pass a batch: at each state one token is drawn. The gradients of such
    log-probabilities are independent between states and 0 in expectation, so that the square of
    their sum is in expectation the sum of their squares.

    Args:
        student: its dropout acts if it is in training mode.
        batches: the states, at least one.
        generator: of the draws, on the student's device.

    Returns:
        What is estimated, by the weight's name, >= 0.
    """
    weights = {n: weight for n, weight in student.named_parameters() if weight.requires_grad}
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
