"""Expert of a black box that gives texts alone, whose distributions a proxy completes.

Of a closed model one has texts: several of each source, and no probabilities. How often a token
follows a prefix in them estimates its distribution there; that of an open model, the proxy, is what
is believed before. Left out: the training of the proxy on the black box's texts, which any agent
that learns from texts does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import AnyCache
from textgen_env.types import Examples, Trajectories


@dataclass(frozen=True)
class ProxyCache:
    """Cache of the proxy and the black box's texts of B sources.

    Attributes:
        proxy: the proxy's own cache.
        texts: (B, K, T + 1) int64, PAD after each text's end, and in all columns beyond K texts.
        follows: (B, K) bool, the texts that begin with what has been written.
    """

    proxy: AnyCache
    texts: Tensor
    follows: Tensor

    def select_rows(self, index: Tensor) -> Self:
        """Return the cache of the rows at `index`, (K,) int64."""
        return type(self)(self.proxy.select_rows(index), self.texts[index], self.follows[index])

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row index[i] of `fresh` as row i where `mask` is True."""
        count = max(self.texts.shape[1], fresh.texts.shape[1])
        old, new = _with_room(self, count), _with_room(fresh, count)
        return type(self)(
            self.proxy.reset_rows(mask, fresh.proxy, index),
            new.texts[index].where(mask[:, None, None], old.texts),
            new.follows[index].where(mask[:, None], old.follows),
        )


class ProxyExpert(Expert):
    """Expert that joins a proxy's distributions with the texts of a black box.

    At a state with n texts that go on from its prefix, c of them with a given token, the token's
    probability is (w p + c) / (w + n), with p the proxy's and w the weight: the mean of a
    Dirichlet law. Without a text it is the proxy's. A text ends at T tokens; the black box is not
    asked again.

    Args:
        proxy: gives its whole distribution, over the same vocabulary.
        texts: texts of the black box as references, any number of rows for each source. Sources are
            found by the view that experts read.
        prior_weight: w, above 0; 5 is a choice, the paper's is not known.

    Raises:
        ExpertError: the proxy gives less than its distribution.
        ValueError: `prior_weight` not above 0.

    Source: after Chen et al. 2024, arXiv:2401.07013.
    """

    def __init__(self, proxy: Expert, texts: Examples, *, prior_weight: float = 5.0) -> None:
        super().__init__(proxy.special)
        if not 0 < prior_weight < float("inf"):
            raise ValueError(
                f"prior_weight must be above 0, got {prior_weight}: at 0 states without a text "
                "would have no distribution"
            )
        if proxy.largest_k is not None:
            raise ExpertError(
                "proxy must give its whole distribution, got one that gives "
                f"{proxy.largest_k or 1} tokens: take a model on this machine"
            )
        self.proxy, self.prior_weight = proxy, prior_weight
        # With a row and a column of padding, in place of texts and tokens that there are none of.
        self._texts = F.pad(texts.reference, (0, 1, 0, 1), value=self.special.pad)
        self._rows_of_source: dict[tuple[int, ...], list[int]] = {}
        known = texts.has_reference(self.special).tolist()
        for row, key in enumerate(self._keys(texts.expert_view)):
            if known[row]:
                self._rows_of_source.setdefault(key, []).append(row)

    @property
    def vocab_size(self) -> int | None:
        """V, the size of the proxy's vocabulary; None if unknown."""
        return self.proxy.vocab_size

    @torch.no_grad()
    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T, V) float32 log-probabilities, from one pass of the proxy."""
        start, actions = time.perf_counter(), trajectories.actions
        prior = self.proxy.logits(trajectories)
        texts, follows = self._texts_of(trajectories.expert_view)
        steps = actions.shape[1]
        texts = F.pad(texts, (0, max(0, steps - texts.shape[2])), value=self.special.pad)
        same = (texts[:, :, : steps - 1] == actions[:, None, :-1]).cumprod(2).bool()
        follows = torch.cat([follows[..., None], follows[..., None] & same], 2)
        logits = self._posterior(prior, texts[:, :, :steps].mT, follows.mT)
        self.count(trajectories.mask.sum(), start)
        return logits

    @torch.no_grad()
    def start(self, source: Tensor, max_steps: int) -> ProxyCache:
        """Return the proxy's cache and the texts of these sources, which the host looks up."""
        texts, follows = self._texts_of(source)
        missing = max(0, max_steps + 1 - texts.shape[2])
        texts = F.pad(texts, (0, missing), value=self.special.pad)
        return ProxyCache(self.proxy.start(source, max_steps), texts, follows)

    @torch.no_grad()
    def step(self, state: State, previous: Tensor, cache: ProxyCache) -> tuple[Tensor, ProxyCache]:
        """Return (B, V) float32 log-probabilities; each episode that is not over is one query."""
        start = time.perf_counter()
        prior, proxy_cache = self.proxy.step(state, previous, cache.proxy)
        last, now = (state.length - 1).clamp(min=0), state.length
        same = _at(cache.texts, last) == previous[:, None]
        follows = cache.follows & (same | (state.length == 0)[:, None])
        logits = self._posterior(prior, _at(cache.texts, now), follows)
        self.count(state.alive.sum(), start)
        return logits, ProxyCache(proxy_cache, cache.texts, follows)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Return texts of the most probable tokens; the beam size has no effect."""
        del beam_size
        prefix = examples.source.new_full((len(examples), max_steps), self.special.pad)
        texts = self.complete(examples.expert_view, prefix, torch.zeros_like(prefix[:, 0]))
        return replace(examples, reference=texts)

    def _posterior(self, prior: Tensor, tokens: Tensor, follows: Tensor) -> Tensor:
        """Return the log-probabilities of the next token, (..., V) float32.

        Args:
            prior: (..., V), logits of the proxy.
            tokens: (..., K) int64, the next token of each text.
            follows: (..., K) bool, the texts that begin with the prefix.
        """
        counted = (follows & (tokens != self.special.pad)).float()
        p = prior.float().softmax(-1)
        counts = torch.zeros_like(p).scatter_add(-1, tokens, counted)
        total = self.prior_weight + counted.sum(-1, keepdim=True)
        return ((self.prior_weight * p + counts) / total).log()

    def _texts_of(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the texts of each source, (B, K, L), and a (B, K) bool mask of those there are."""
        rows = [self._rows_of_source.get(key, []) for key in self._keys(source)]
        most = max(1, *map(len, rows))
        index = torch.tensor([[*row, *[0] * (most - len(row))] for row in rows])
        count = torch.tensor([len(row) for row in rows])
        follows = torch.arange(most) < count[:, None]
        device = self._texts.device
        return self._texts[index.to(device)].to(source.device), follows.to(source.device)

    def _keys(self, source: Tensor) -> list[tuple[int, ...]]:
        """Return each source's tokens without padding."""
        pad = self.special.pad
        return [tuple(token for token in row if token != pad) for row in source.tolist()]


def drawn_texts(
    black_box: Expert,
    examples: Examples,
    *,
    count: int,
    max_steps: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Examples:
    """Return `count` texts of a black box for each source, as `ProxyExpert` takes them.

    Args:
        black_box: writes texts; nothing else is asked of it.
        examples: the sources.
        count: n, at least 0; at 0 the proxy stays as it is.
        max_steps: T, the longest text in tokens.
        sampling: how the black box draws; temperature 1 for its own law.
        generator: source of randomness.

    Returns:
        `count` rows of each example, one draw after the other.
    """
    parts: Sequence[Tensor] = [
        black_box.sample(
            examples, max_steps=max_steps, sampling=sampling, generator=generator
        ).reference
        for _ in range(count)
    ]
    rows = torch.arange(len(examples), device=examples.source.device).repeat(count)
    none = examples.reference.new_empty(0, max_steps)
    return replace(examples.select(rows), reference=torch.cat([none, *parts]))


def _at(texts: Tensor, place: Tensor) -> Tensor:
    """Return the (B, K) tokens of (B, K, L) texts at the (B,) places."""
    return texts.gather(2, place[:, None, None].expand(-1, texts.shape[1], 1)).squeeze(2)


def _with_room(cache: ProxyCache, count: int) -> ProxyCache:
    """Return the cache with room for `count` texts of each source."""
    missing = count - cache.texts.shape[1]
    texts = F.pad(cache.texts, (0, 0, 0, missing))
    return replace(cache, texts=texts, follows=F.pad(cache.follows, (0, missing)))
