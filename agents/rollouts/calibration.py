"""Calibration of a gate: the threshold at which the expert writes a wanted share of the tokens.

How far a student diverges from its teacher depends on both, and so does what a threshold of a
paper's comes to. The share that the teacher writes is what its threshold was chosen for.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.rollouts.context import Context

ROUNDS = 4  # of writing; the expert's tokens change what the student writes after them

WriteAt = Callable[[Context, float], LabelledBatch]
"""(context, threshold) -> texts written with it, with the expert's logits."""
ScoreTokens = Callable[[Context, Tensor, Tensor], Tensor]
"""(context, student's logits, expert's, (B, T, V) each) -> (B, T), compared with the threshold."""


def calibrated_threshold(
    context: Context, share: float, write: WriteAt, score: ScoreTokens
) -> float:
    """Return the threshold at which the expert writes `share` of the tokens of a batch.

    The student writes it alone at first; then it is written again with each threshold that leaves
    the share of its tokens above. All processes that share the update find the same one.

    Args:
        context: of a collection; the batch is that of all its processes.
        share: in [0, 1].
        write: writes the batch with a threshold.
        score: quantity of each token, at least 0; the expert writes it where this is above.

    Returns:
        The threshold; a little off where the last round has changed the texts.
    """
    threshold = float("inf")
    for _ in range(ROUNDS):
        batch = write(context, threshold)
        states = batch.trajectories
        with torch.no_grad():
            logits = context.student.sequence_logits(states.source, states.actions)
            scores = score(context, logits, batch.labels["logits"])
        threshold = threshold_of(context.gather(scores[states.mask]), share)
    return threshold


def threshold_of(scores: Tensor, share: float) -> float:
    """Return the score that `share` of the (N,) scores are above; 0 where all of them are to be."""
    above = min(int(share * len(scores) + 0.5), len(scores))
    return 0.0 if above == len(scores) else float(scores.kthvalue(len(scores) - above).values)
