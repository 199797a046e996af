"""Checks of what an agent returns, so that one of a user's own says what it lacks in one line."""

from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.labels import LabelledBatch


class AgentAnswerError(ValueError):
    """An agent that has returned something else than its methods promise."""


def checked_batch(agent: Agent, collected: object) -> LabelledBatch:
    """Return what an agent has collected.

    Raises:
        AgentAnswerError: it is no `LabelledBatch`, or has no rows.
    """
    name = type(agent).__name__
    if not isinstance(collected, LabelledBatch):
        raise AgentAnswerError(
            f"collect of {name} must return a LabelledBatch, got {_kind_of(collected)}: return "
            "LabelledBatch(trajectories)"
        )
    if not len(collected):
        raise AgentAnswerError(f"collect of {name} must return at least one row, got none")
    return collected


def checked_loss(agent: Agent, loss: object) -> Tensor:
    """Return the loss of an agent.

    Raises:
        AgentAnswerError: it is no scalar, or no gradient flows through it.
    """
    name = type(agent).__name__
    if not isinstance(loss, Tensor) or loss.dim():
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else _kind_of(loss)
        raise AgentAnswerError(
            f"loss of {name} must return a scalar tensor, got {got}: take mean_over_actions"
        )
    if not loss.requires_grad:
        raise AgentAnswerError(
            f"loss of {name} must depend on the student with gradient, got one without: compute it "
            "from student.sequence_logits, outside of torch.no_grad()"
        )
    return loss


def _kind_of(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
