import math
from dataclasses import replace

import pytest
import torch

from tests.support.updates import context_of
from textgen_agents.rollouts.calibration import calibrated_threshold, threshold_of
from textgen_agents.rollouts.rollout import rollout
from textgen_env.types import Writer

SCORES = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 0.5), (0.2, 0.4), (0.53, 0.2), (0.8, 0.1), (1.0, 0.0)]
)
def test_the_share_of_the_scores_is_above_the_threshold(share, expected):
    found = threshold_of(SCORES, share)
    assert found == pytest.approx(expected)
    assert int((found < SCORES).sum()) == round(share * 5)


def test_the_batch_is_that_of_all_processes(env, tiny_student):
    """The other process's tokens are all above: its half is all of the wanted share."""
    batch = rollout(context_of(env, tiny_student), as_expert, record_expert_logits=True)
    scores = torch.rand(batch.trajectories.mask.shape)
    thresholds = []

    def write(context, threshold):
        del context
        thresholds.append(threshold)
        return batch

    context = replace(
        context_of(env, tiny_student),
        gather=lambda values: torch.cat([values, torch.full_like(values, 9.0)]),
    )
    found = calibrated_threshold(context, 0.5, write, lambda *_: scores)
    assert found == scores[batch.trajectories.mask].max()
    assert thresholds == [math.inf, *[found] * (len(thresholds) - 1)]


def as_expert(view):
    return view.expert_logits.argmax(1).clamp(min=2), torch.full_like(view.rows, Writer.EXPERT)
