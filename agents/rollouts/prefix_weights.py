"""Prefix weights: states count the less, the further the text before them has left the teacher.

As a text that the student writes goes on, teacher and student come to disagree about what stands
there already, and what the teacher says next teaches less.
"""

from dataclasses import replace

import torch
from torch import Tensor

from textgen_agents.losses.divergences import cross_entropy
from textgen_agents.losses.labels import LabelledBatch, Labels
from textgen_agents.losses.state_chunks import StateChunk, label_states
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Writer

ROWS_PER_PASS = 64  # texts that student and expert read together
LARGEST_DISCREPANCY = 100.0  # nats, of a token that one of the two gives no probability
SMALLEST_TOTAL = 1e-8  # nats, of a text about which both agree


def prefix_weights(discrepancy: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Return 1 + strength (1 - the share of a text's discrepancy that lies before each token).

    Args:
        discrepancy: (B, T) float, log p - log q of the tokens written, with p the teacher and q the
            student; only its size counts.
        mask: (B, T) bool, the tokens that count.
        strength: at least 0; gamma in the paper.

    Returns:
        (B, T) weights that fall from 1 + strength at the first token to 1 or more at the last.

    Source: Xie et al. 2026, algorithm 1, arXiv:2606.22600.
    """
    sizes = discrepancy.abs().clamp(max=LARGEST_DISCREPANCY).where(mask, 0.0)
    before = sizes.cumsum(1) - sizes
    total = sizes.sum(1, keepdim=True).clamp(min=SMALLEST_TOTAL)
    return 1 + strength * (1 - before / total)


@torch.no_grad()
def with_prefix_weights(
    batch: LabelledBatch, student: SequenceModel, expert: Expert, strength: float
) -> LabelledBatch:
    """Return `batch` with prefix weights on the texts that the student has written in, 1 elsewhere.

    Args:
        batch: what an agent has collected.
        student: as it is now.
        expert: asked for its whole distribution on these texts, unless that is among the labels.
        strength: of the weights, at least 0.
    """
    states = batch.trajectories
    weight = torch.ones(states.mask.shape, device=states.mask.device)
    rows = ((states.writer == Writer.STUDENT) & states.mask).any(1).nonzero().squeeze(1)
    by_length = rows[states.mask.sum(1)[rows].argsort(stable=True)]
    for chosen in by_length.split(ROWS_PER_PASS) if len(rows) else ():
        part = batch.select(chosen).trimmed(expert.special)
        asked = None if "logits" in part.labels else expert
        discrepancy = label_states(_discrepancy, part, student, asked)["discrepancy"]
        mask = part.trajectories.mask
        weight[chosen, : mask.shape[1]] = prefix_weights(discrepancy, mask, strength)
    return replace(batch, trajectories=replace(states, weight=weight))


def _discrepancy(at: StateChunk) -> Labels:
    """Return log p - log q of the tokens written, (K,) float32, nats."""
    own, teachers = (
        cross_entropy(logits, at.actions) for logits in (at.student_logits, at.teacher_logits)
    )
    return {"discrepancy": own - teachers}
