"""What an agent returns, checked where it is used."""

import pytest
import torch

from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mle import MLE
from textgen_agents.training.answers import AgentAnswerError, checked_batch, checked_loss
from textgen_env.types import Examples, SpecialTokens, Trajectories


def states(rows):
    tokens = torch.tensor([[3, 2]]).repeat(rows, 1)
    return Trajectories.from_examples(Examples(tokens, tokens), SpecialTokens())


def test_a_batch_and_a_loss_are_returned_as_they_are():
    batch, loss = LabelledBatch(states(2)), torch.zeros((), requires_grad=True)
    assert checked_batch(MLE(), batch) is batch
    assert checked_loss(MLE(), loss) is loss


@pytest.mark.parametrize(
    ("collected", "message"),
    [
        (None, "collect of MLE must return a LabelledBatch, got None: return LabelledBatch"),
        (states(2), "got a Trajectories"),
        (LabelledBatch(states(0)), "must return at least one row, got none"),
    ],
)
def test_anything_else_than_a_batch_is_refused(collected, message):
    with pytest.raises(AgentAnswerError, match=message):
        checked_batch(MLE(), collected)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (None, "loss of MLE must return a scalar tensor, got None"),
        (torch.zeros(8, 5, requires_grad=True), r"got shape \(8, 5\): take mean_over_actions"),
        (torch.zeros(()), "must depend on the student with gradient"),
    ],
)
def test_anything_else_than_a_loss_is_refused(loss, message):
    with pytest.raises(AgentAnswerError, match=message):
        checked_loss(MLE(), loss)
