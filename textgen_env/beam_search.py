"""Beam search over any `SequenceModel`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens

LOOK_EVERY = 4  # steps between two looks at whether all sources are done


@dataclass(frozen=True)
class Beams:
    """The hypotheses of B sources.

    Attributes:
        tokens: (B, K, T) int64 live hypotheses, PAD after what is written.
        scores: (B, K) float32, their log-probabilities; minus infinity for none.
        best: (B, T) int64, the best finished hypothesis.
        best_score: (B,) float32, its normalized score.
        finished: (B,) int64, how many have finished.
    """

    tokens: Tensor
    scores: Tensor
    best: Tensor
    best_score: Tensor
    finished: Tensor


@torch.no_grad()
def beam_search(
    model: SequenceModel,
    source: Tensor,
    max_steps: int,
    *,
    beam_size: int = 5,
    length_penalty: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The target whose normalized log-probability is highest among those a beam of K finds.

    A hypothesis of L tokens, its end token included, scores log-probability / L^length_penalty. Of
    the 2K best continuations of a source's K live hypotheses, the end tokens among the first K
    finish, and the K best others live on. A source is done when K hypotheses have finished; live
    ones that reach the limit count as finished.

    Args:
        model: in evaluation mode.
        source: (B, S) int64.
        max_steps: most tokens of a target, its end token included.
        beam_size: K, at least 1.
        length_penalty: 0 ranks by log-probability, 1 by its mean over tokens.

    Returns:
        (B, max_steps) int64 targets, PAD after the end token, and (B,) float32 normalized scores.

    Raises:
        ValueError: `beam_size` below 1 or over half the vocabulary.

    Source: Sutskever et al. 2014, section 3.2, arXiv:1409.3215; the normalization is that of
        Bahdanau et al. 2015, arXiv:1409.0473, with an exponent.
    """
    if not 1 <= beam_size <= model.vocab_size // 2:
        raise ValueError(
            f"beam_size must be between 1 and {model.vocab_size // 2}, half the vocabulary, "
            f"got {beam_size}"
        )
    special = model.special
    rows = torch.arange(len(source), device=source.device)
    beams = _begin(rows, beam_size, max_steps, special)
    cache = model.start(source, max_steps).select_rows(rows.repeat_interleave(beam_size))
    previous = torch.full((len(source) * beam_size,), special.start, device=source.device)
    for step in range(max_steps):
        logits, cache = model.step(previous, cache)
        log_probs = _log_probs(logits, special).unflatten(0, (-1, beam_size))
        norm = (step + 1) ** length_penalty
        beams, parent = _continue(beams, log_probs, step, norm, special)
        if step % LOOK_EVERY == LOOK_EVERY - 1 and bool((beams.finished >= beam_size).all()):
            break
        cache = cache.select_rows((rows[:, None] * beam_size + parent).flatten())
        previous = beams.tokens[:, :, step].flatten()
    else:
        beams = _finish(beams, beams.tokens, beams.scores / max_steps**length_penalty)
    return beams.best, beams.best_score


def _begin(rows: Tensor, beam_size: int, max_steps: int, special: SpecialTokens) -> Beams:
    """One empty hypothesis for each source, and K - 1 places for others."""
    scores = torch.full((len(rows), beam_size), float("-inf"), device=rows.device)
    scores[:, 0] = 0
    return Beams(
        tokens=rows.new_full((len(rows), beam_size, max_steps), special.pad),
        scores=scores,
        best=rows.new_full((len(rows), max_steps), special.pad),
        best_score=torch.full((len(rows),), float("-inf"), device=rows.device),
        finished=torch.zeros_like(rows),
    )


def _log_probs(logits: Tensor, special: SpecialTokens) -> Tensor:
    """(R, V) float32 log-probabilities; padding and start are never written."""
    log_probs = logits.float().log_softmax(-1)
    log_probs[:, special.pad] = float("-inf")
    log_probs[:, special.start] = float("-inf")
    return log_probs


def _continue(
    beams: Beams, log_probs: Tensor, step: int, norm: float, special: SpecialTokens
) -> tuple[Beams, Tensor]:
    """The beams one token later, and which hypothesis, (B, K), each live one goes on from."""
    beam_size, vocab_size = log_probs.shape[1:]
    totals = (beams.scores[:, :, None] + log_probs).flatten(1)
    scores, place = totals.topk(2 * beam_size)
    parent, token = place // vocab_size, place % vocab_size
    tokens = beams.tokens.gather(1, parent[:, :, None].expand(-1, -1, beams.tokens.shape[2]))
    tokens[:, :, step] = token
    ended = token == special.end
    first = ended[:, :beam_size]
    ending = (scores[:, :beam_size] / norm).masked_fill(~first, float("-inf"))
    beams = _finish(beams, tokens[:, :beam_size], ending)
    live, rank = scores.masked_fill(ended, float("-inf")).topk(beam_size)
    width = tokens.shape[2]
    kept = tokens.gather(1, rank[:, :, None].expand(-1, -1, width))
    return (
        Beams(kept, live, beams.best, beams.best_score, beams.finished),
        parent.gather(1, rank),
    )


def _finish(beams: Beams, tokens: Tensor, scores: Tensor) -> Beams:
    """Take hypotheses with normalized `scores`, (B, K), where finite, into the finished ones."""
    score, rank = scores.max(1)
    open_ = beams.finished < beams.scores.shape[1]  # later ones do not count
    better = open_ & (score > beams.best_score)
    candidate = tokens.gather(1, rank[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)
    return Beams(
        tokens=beams.tokens,
        scores=beams.scores,
        best=candidate.where(better[:, None], beams.best),
        best_score=score.where(better, beams.best_score),
        finished=beams.finished + scores.isfinite().sum(1),
    )
