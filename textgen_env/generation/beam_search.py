"""Beam search over any `SequenceModel`.

A hypothesis is a target prefix with its log-probability. All K places of a source's beam are steps
of the model side by side, B * K rows that never change in number while a source is searched; what
is done is hidden by minus infinity instead. What the model has read of a source is shared by its K
rows.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from textgen_env.generation.decoding import (
    Decoder,
    check_decoding,
    greedy,
    rows_to_keep,
    sync_interval,
)
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class BeamSearch:
    """A `Decoder` that gives the best hypothesis of `beam_search`.

    Attributes:
        beam_size: K, at least 1.
        length_penalty: exponent of the length, at least 0.
    """

    beam_size: int = 5
    length_penalty: float = 1.0

    def __call__(self, model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
        """(B, max_steps) int64, PAD after the end."""
        return beam_search(
            model,
            source,
            max_steps,
            beam_size=self.beam_size,
            length_penalty=self.length_penalty,
        )[0]


def decoder_of(beam_size: int) -> Decoder:
    """Beam search, or `greedy` for a beam of one, which is the same and faster."""
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

    At each step the beam is the best of all one-token continuations of what was live in it, by
    log-probability. A hypothesis with an end token is finished and keeps its place, so the live
    ones become fewer (Sutskever et al. 2014, section 3.2, arXiv:1409.3215). Of the finished
    hypotheses and those cut off at T the one with the best score wins, where

        score = log-probability / length ** length_penalty

    and length counts the end token. (Wu et al. 2016, eq. 14, divide by ((5 + length) / 6) **
    alpha.) A source is searched until no live hypothesis can win. With K = 1 this is greedy
    decoding.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        beam_size: K, at least 1.
        length_penalty: at least 0; at 0 short targets win.

    Returns:
        (B, T) int64 tokens, the end token included, PAD after it; (B,) float32 scores, nats.
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
    """Search as `beam_search` does, and give the `count` best targets of each source.

    A source is searched until no live hypothesis can become one of them.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        count: C, from 1 to K.
        beam_size: K, at least 1.
        length_penalty: at least 0.

    Returns:
        (B, C, T) int64 tokens, PAD after the end token, and (B, C) float32 scores, nats, falling;
        where fewer texts than C were found, only PAD and -inf.
    """
    check_decoding(source, max_steps)
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, got {beam_size}")
    if not 1 <= count <= beam_size:
        raise ValueError(f"count must be from 1 to beam_size ({beam_size}), got {count}")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty must be at least 0 and finite, got {length_penalty}")
    with torch.inference_mode():
        beam = _Beam.empty(source, beam_size, count, max_steps, model.special)
        tokens, score = _search(model, source, beam, length_penalty)
    return tokens.clone(), score.clone()  # could not be trained on as made in inference mode


@dataclass(frozen=True)
class _Beam:
    """The state of a search over B sources with K places each.

    Attributes:
        tokens: (B, K, T) int64 of the live hypotheses, PAD where nothing is written yet.
        log_prob: (B, K) float32 of the live hypotheses; -inf at the other places.
        best_tokens: (B, C, T) int64, the finished hypotheses with the best scores.
        best_score: (B, C) float32, falling; -inf where fewer are finished.
        live: (B,) int64, places not taken by finished hypotheses.
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
        cls, source: Tensor, places: int, count: int, max_steps: int, special: SpecialTokens
    ) -> Self:
        """One live hypothesis a source, the empty one: the other places would repeat it."""
        sources = len(source)
        tokens = source.new_full((sources, places, max_steps), special.pad)
        log_prob = torch.full((sources, places), float("-inf"), device=source.device)
        log_prob[:, 0] = 0.0
        return cls(
            tokens=tokens,
            log_prob=log_prob,
            best_tokens=tokens[:, :count],
            best_score=log_prob.new_full((sources, count), float("-inf")),
            live=source.new_full((sources,), places),
            special=special,
        )

    def grown(self, logits: Tensor, step: int, length_penalty: float) -> tuple[Self, Tensor]:
        """The beam after one more token, and the place (B, K) that each hypothesis comes from."""
        places = self.log_prob.shape[1]
        log_prob, parent, token = _continuations(logits, self.log_prob, self.special)
        rank = torch.arange(places, device=logits.device)
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
        return beam._with_best(
            log_prob.masked_fill(~ended, float("-inf")), step, length_penalty
        ), parent

    def _with_best(self, log_prob: Tensor, step: int, length_penalty: float) -> Self:
        """The beam with the best of its best hypotheses and those with `log_prob`, (B, K)."""
        scores = torch.cat([self.best_score, log_prob / (step + 1) ** length_penalty], 1)
        score, place = scores.topk(self.best_score.shape[1])
        index = place[:, :, None].expand(-1, -1, self.tokens.shape[2])
        tokens = torch.cat([self.best_tokens, self.tokens], 1).gather(1, index)
        return replace(self, best_tokens=tokens, best_score=score)

    def decided(self, length_penalty: float) -> Tensor:
        """(B,) bool: no live hypothesis can become one of the best finished ones.

        Proof. Let l be a live hypothesis' log-probability. A continuation adds log-probabilities,
        none above 0, so it has l' <= l <= 0, and it has some length n <= T. Because the penalty p
        is not negative, n ** p <= T ** p, so its score is l' / n ** p <= l / n ** p <= l / T ** p.
        The bound grows with l, so the best live l bounds all. Rounding is monotone and keeps each
        <=. If nothing is live the best l is -inf and the source is decided.
        """
        bound = self.log_prob.amax(1) / self.tokens.shape[2] ** length_penalty
        return bound <= self.best_score[:, -1]

    def truncated(self, length_penalty: float) -> Self:
        """The beam once T tokens are written: what is live counts as it stands."""
        return self._with_best(self.log_prob, self.tokens.shape[2] - 1, length_penalty)

    def select(self, index: Tensor) -> Self:
        """The beam of the sources at `index`."""
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
    (_, places, max_steps), every = beam.tokens.shape, sync_interval(source.device)
    tokens, score = beam.best_tokens.clone(), beam.best_score.clone()
    rows = torch.arange(len(source), device=source.device)
    cache = model.start(source, max_steps).repeat_rows(places)
    previous = torch.full_like(rows, beam.special.start).repeat(places)
    for step in range(max_steps):
        logits, cache = model.step(previous, cache)
        beam, parent = beam.grown(logits, step, length_penalty)
        if step + 1 == max_steps:
            beam = beam.truncated(length_penalty)
            break
        cache = cache.reorder_rows(_rows_of(parent))
        previous = beam.tokens[:, :, step].flatten()
        if (step + 1) % every:
            continue
        kept = rows_to_keep(beam.decided(length_penalty))
        if kept is None:
            continue
        if not len(kept):
            break
        tokens[rows], score[rows] = beam.best_tokens, beam.best_score
        rows, beam = rows[kept], beam.select(kept)
        all_places = kept[:, None] * places + torch.arange(places, device=kept.device)
        cache, previous = cache.select_rows(all_places.flatten()), previous[all_places.flatten()]
    tokens[rows], score[rows] = beam.best_tokens, beam.best_score
    return tokens.masked_fill(score.isneginf()[:, :, None], beam.special.pad), score


def _rows_of(place: Tensor) -> Tensor:
    """(B * K,) int64 rows of the places (B, K), each a place in its own source's beam."""
    sources, places = place.shape
    first = torch.arange(0, sources * places, places, device=place.device)
    return (first[:, None] + place).flatten()


def _continuations(
    logits: Tensor, log_prob: Tensor, special: SpecialTokens
) -> tuple[Tensor, Tensor, Tensor]:
    """The best K one-token continuations of each source's hypotheses.

    Args:
        logits: (B * K, V) float, any dtype; computed in float32.
        log_prob: (B, K) float32 of the hypotheses, -inf where there is none.
        special: the model's special tokens; padding and start are no continuations.

    Returns:
        (B, K) float32 log-probabilities in falling order, -inf where there are not so many, (B, K)
        int64 places of the hypotheses continued, and (B, K) int64 tokens. The probability of what
        is no continuation counts, so that log-probabilities are the model's own.
    """
    sources, places = log_prob.shape
    logits = logits.to(torch.float32, copy=True)
    normalizer = logits.logsumexp(-1, keepdim=True)
    logits[:, special.pad] = float("-inf")
    logits[:, special.start] = float("-inf")
    top, token = logits.topk(min(places, logits.shape[-1]))  # no more can come from one hypothesis
    step_log_prob = (top - normalizer).clamp_(max=0.0)  # rounding must not make it positive
    total = (log_prob[:, :, None] + step_log_prob.view(sources, places, -1)).flatten(1)
    best, index = total.topk(places)
    parent = index // top.shape[-1]
    return best, parent, token.view(sources, -1).gather(1, index)
