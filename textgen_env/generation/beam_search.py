"""Beam search over any `SequenceModel`.

A hypothesis is a target prefix with its log-probability. The K hypotheses of each source are rows
of one batch of B * K; their number is constant while a source is searched, and hypotheses that are
finished have log-probability -inf. The K rows of a source share the encoded source. Searches that
are decided leave the batch (`rows_to_keep`).
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from textgen_env.bounds import check_at_least
from textgen_env.generation.decoding import (
    Decoder,
    check_decoding,
    check_logits,
    check_unseen_logits,
    greedy,
    rows_to_keep,
    sync_interval,
)
from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class BeamSearch:
    """`Decoder` that returns the best hypothesis of `beam_search`.

    Attributes:
        beam_size: K, at least 1.
        length_penalty: exponent of the length, at least 0.
    """

    beam_size: int = 5
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, beam_size=1, length_penalty=0)

    def __call__(self, model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
        """Return (B, max_steps) int64 tokens, PAD after the end token."""
        return beam_search(
            model,
            source,
            max_steps,
            beam_size=self.beam_size,
            length_penalty=self.length_penalty,
        )[0]


def decoder_of(beam_size: int) -> Decoder:
    """Return a beam-search decoder; for a beam of one, `greedy`, which is the same and faster."""
    return greedy if beam_size == 1 else BeamSearch(beam_size)


def beam_search(
    model: SequenceModel,
    source: Tensor,
    max_steps: int,
    *,
    beam_size: int = 5,
    length_penalty: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Search for the most probable target of each source.

    At each step the beam holds the best one-token continuations of its live hypotheses, by
    log-probability. A hypothesis with an end token is finished and keeps its slot, so that the
    number of live hypotheses falls. The result is the best-scored one of the finished hypotheses
    and those truncated at T, where

        score = log-probability / length ** length_penalty

    and length counts the end token. (Wu et al. 2016, eq. 14, divide by ((5 + length) / 6) **
    alpha.) A source is searched until no live hypothesis can win. K = 1 is greedy decoding.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        beam_size: K, at least 1.
        length_penalty: at least 0; 0 favors short targets.

    Returns:
        (B, T) int64 tokens, the end token included, PAD after it; (B,) float32 scores, nats.

    Source: Sutskever et al. 2014, section 3.2, arXiv:1409.3215.
    """
    tokens, score = n_best(
        model, source, max_steps, count=1, beam_size=beam_size, length_penalty=length_penalty
    )
    return tokens.squeeze(1), score.squeeze(1)


def n_best(
    model: SequenceModel,
    source: Tensor,
    max_steps: int,
    *,
    count: int,
    beam_size: int = 5,
    length_penalty: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Search for the C best targets of each source; see `beam_search`.

    A source is searched until no live hypothesis can become one of its C best.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        count: C, from 1 to K.
        beam_size: K, at least 1.
        length_penalty: at least 0.

    Returns:
        (B, C, T) int64 tokens, PAD after the end token, and (B, C) float32 scores, nats, in
        decreasing order; PAD alone and -inf where fewer than C hypotheses were found.
    """
    check_decoding(source, max_steps)
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, got {beam_size}")
    if not 1 <= count <= beam_size:
        raise ValueError(f"count must be from 1 to beam_size ({beam_size}), got {count}")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty must be at least 0 and finite, got {length_penalty}")
    if not len(source):
        scores = torch.empty(0, count, device=source.device)
        return source.new_empty(0, count, max_steps), scores
    with torch.inference_mode():
        beam = _Beam.empty(source, beam_size, count, max_steps, model.special)
        tokens, score = _search(model, source, beam, length_penalty)
    return tokens.clone(), score.clone()  # inference tensors cannot be used in training


@dataclass(frozen=True)
class _Beam:
    """State of a search over B sources with K slots each.

    Attributes:
        tokens: (B, K, T) int64 of the live hypotheses, PAD after their last token.
        log_prob: (B, K) float32 of the live hypotheses; -inf in all other slots.
        best_tokens: (B, C, T) int64, the finished hypotheses with the best scores.
        best_score: (B, C) float32, in decreasing order; -inf where fewer are finished.
        live: (B,) int64, slots not taken by finished hypotheses.
        special: the model's special tokens.
    """

    tokens: Tensor
    log_prob: Tensor
    best_tokens: Tensor
    best_score: Tensor
    live: Tensor
    special: SpecialTokens

    @classmethod
    def empty(
        cls, source: Tensor, beam_size: int, count: int, max_steps: int, special: SpecialTokens
    ) -> Self:
        """Return a beam with one live hypothesis a source, the empty one."""
        sources = len(source)
        tokens = source.new_full((sources, beam_size, max_steps), special.pad)
        log_prob = torch.full((sources, beam_size), float("-inf"), device=source.device)
        log_prob[:, 0] = 0.0
        return cls(
            tokens=tokens,
            log_prob=log_prob,
            best_tokens=tokens[:, :count],
            best_score=log_prob.new_full((sources, count), float("-inf")),
            live=source.new_full((sources,), beam_size),
            special=special,
        )

    def extend(self, logits: Tensor, step: int, length_penalty: float) -> tuple[Self, Tensor]:
        """Append the best token to each hypothesis.

        Args:
            logits: (B * K, V) float of the next token.
            step: number of tokens that each hypothesis has.
            length_penalty: exponent of the length.

        Returns:
            The beam after this step, and the (B, K) int64 slots of the hypotheses extended.
        """
        log_prob, parent, token = _best_continuations(logits, self.log_prob, self.special)
        rank = torch.arange(log_prob.shape[1], device=logits.device)
        log_prob = log_prob.masked_fill(rank >= self.live[:, None], float("-inf"))
        tokens = self.tokens.gather(1, parent[:, :, None].expand_as(self.tokens))
        tokens[:, :, step] = token
        ended = (token == self.special.end) & log_prob.isfinite()
        beam = replace(
            self,
            tokens=tokens,
            log_prob=log_prob.masked_fill(ended, float("-inf")),
            live=self.live - ended.sum(1),
        )
        finished = log_prob.masked_fill(~ended, float("-inf"))
        return beam._update_best(finished, step + 1, length_penalty), parent

    def _update_best(self, log_prob: Tensor, length: int, length_penalty: float) -> Self:
        """Merge the slots with finite `log_prob`, (B, K), into the best finished hypotheses."""
        scores = torch.cat([self.best_score, log_prob / length**length_penalty], 1)
        score, slot = scores.topk(self.best_score.shape[1])
        index = slot[:, :, None].expand(-1, -1, self.tokens.shape[2])
        tokens = torch.cat([self.best_tokens, self.tokens], 1).gather(1, index)
        return replace(self, best_tokens=tokens, best_score=score)

    def decided(self, length_penalty: float) -> Tensor:
        """Return a (B,) bool mask of sources where no live hypothesis can become one of the best.

        Proof. Let l be the log-probability of a live hypothesis. Log-probabilities are at most 0,
        so that a continuation has l' <= l <= 0, at some length n <= T. The penalty p is at least
        0, so that n ** p <= T ** p, and the score is l' / n ** p <= l / n ** p <= l / T ** p. The
        bound increases with l: the best live l bounds all. Rounding is monotone and keeps each <=.
        Without live hypotheses the best l is -inf, and the source is decided.
        """
        bound = self.log_prob.amax(1) / self.tokens.shape[2] ** length_penalty
        return bound <= self.best_score[:, -1]

    def truncated(self, length_penalty: float) -> Self:
        """Return the beam at the length limit, where live hypotheses count as finished."""
        return self._update_best(self.log_prob, self.tokens.shape[2], length_penalty)

    def select(self, index: Tensor) -> Self:
        """Return the beam of the sources at `index`."""
        return replace(
            self,
            tokens=self.tokens[index],
            log_prob=self.log_prob[index],
            best_tokens=self.best_tokens[index],
            best_score=self.best_score[index],
            live=self.live[index],
        )


def _search(
    model: SequenceModel, source: Tensor, beam: _Beam, length_penalty: float
) -> tuple[Tensor, Tensor]:
    (_, beam_size, max_steps), interval = beam.tokens.shape, sync_interval(source.device)
    tokens, score = beam.best_tokens.clone(), beam.best_score.clone()
    rows = torch.arange(len(source), device=source.device)
    cache = model.start(source, max_steps).repeat_rows(beam_size)
    previous = torch.full_like(rows, beam.special.start).repeat(beam_size)
    for step in range(max_steps):
        logits, cache = model.step(previous, cache)
        beam, parent = beam.extend(logits, step, length_penalty)
        if step + 1 == max_steps:
            check_unseen_logits(logits)
            beam = beam.truncated(length_penalty)
            break
        cache = cache.reorder_rows(_cache_rows(parent))
        previous = beam.tokens[:, :, step].flatten()
        if (step + 1) % interval:
            continue
        check_unseen_logits(logits)
        kept = rows_to_keep(beam.decided(length_penalty))
        if kept is None:
            continue
        if not len(kept):
            break
        tokens[rows], score[rows] = beam.best_tokens, beam.best_score
        rows, beam = rows[kept], beam.select(kept)
        slots = kept[:, None] * beam_size + torch.arange(beam_size, device=kept.device)
        cache, previous = cache.select_rows(slots.flatten()), previous[slots.flatten()]
    tokens[rows], score[rows] = beam.best_tokens, beam.best_score
    return tokens.masked_fill(score.isneginf()[:, :, None], beam.special.pad), score


def _cache_rows(slot: Tensor) -> Tensor:
    """Return (B * K,) int64 cache rows of (B, K) slots, each a slot of its own source's beam."""
    sources, beam_size = slot.shape
    first = torch.arange(0, sources * beam_size, beam_size, device=slot.device)
    return (first[:, None] + slot).flatten()


def _best_continuations(
    logits: Tensor, log_prob: Tensor, special: SpecialTokens
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the K best one-token continuations of each source's hypotheses.

    Padding and start are never continuations, but their probability stays in the normalizer: the
    log-probabilities are the model's own.

    Args:
        logits: (B * K, V) float, any dtype; computed in float32.
        log_prob: (B, K) float32 of the hypotheses, -inf in slots without one.
        special: the model's special tokens.

    Returns:
        (B, K) float32 log-probabilities in decreasing order, -inf where there are fewer
        continuations; (B, K) int64 slots of the hypotheses continued; (B, K) int64 tokens.
    """
    sources, beam_size = log_prob.shape
    logits = logits.to(torch.float32, copy=True)
    normalizer = logits.logsumexp(-1, keepdim=True)
    if host_sync_is_free(logits.device):
        check_logits(normalizer)
    logits[:, special.pad] = float("-inf")
    logits[:, special.start] = float("-inf")
    top, token = logits.topk(min(beam_size, logits.shape[-1]))  # K of one hypothesis are enough
    step_log_prob = (top - normalizer).clamp_(max=0.0)  # rounding must not make it positive
    total = (log_prob[:, :, None] + step_log_prob.view(sources, beam_size, -1)).flatten(1)
    best, index = total.topk(beam_size)
    parent = index // top.shape[-1]
    return best, parent, token.view(sources, -1).gather(1, index)
