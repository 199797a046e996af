"""Expert that asks one of several, by a key at the beginning of the view that it reads.

The key is a field of the pair that stands in front of what the expert reads, and stays there
whatever happens to the example. The expert that is chosen reads what comes after it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.queries import Queries
from textgen_env.experts.top_k import TopK
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import AnyCache
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import Examples, Trajectories

Rows = TypeVar("Rows", Trajectories, Examples)


@dataclass(frozen=True)
class KeyedCache:
    """Caches of all experts for the same rows, and whose each row is; a `Cache` itself.

    Attributes:
        chosen: (B,) int64, the place of each row's expert.
        caches: of each expert, a row for each episode.
    """

    chosen: Tensor
    caches: tuple[AnyCache, ...]

    def select_rows(self, index: Tensor) -> Self:
        """Select the same rows of every cache."""
        return self._with(self.chosen[index], lambda cache: cache.select_rows(index))

    def repeat_rows(self, count: int) -> Self:
        """Repeat the rows of every cache."""
        chosen = self.chosen.repeat_interleave(count)
        return self._with(chosen, lambda cache: cache.repeat_rows(count))

    def reorder_rows(self, index: Tensor) -> Self:
        """Reorder the rows of every cache."""
        return self._with(self.chosen[index], lambda cache: cache.reorder_rows(index))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Reset the same rows of every cache; they may have another expert then."""
        pairs = zip(self.caches, fresh.caches, strict=True)
        return type(self)(
            fresh.chosen[index].where(mask, self.chosen),
            tuple(cache.reset_rows(mask, new, index) for cache, new in pairs),
        )

    def _with(self, chosen: Tensor, change: Callable[[AnyCache], AnyCache]) -> Self:
        return type(self)(chosen, tuple(change(cache) for cache in self.caches))


class KeyedExpert(Expert):
    """Expert whose answers about a pair are those of the expert that the pair's key names.

    A pass over whole texts asks each expert about its own rows alone. Where it is stepped, each is
    stepped on all rows, since rows may change hands as slots are refilled; only answers about its
    own rows count as queries.

    Args:
        experts: key -> expert; at least one, all with one vocabulary.
        tokenizer: of the sources, in which the keys are written.

    Raises:
        ValueError: there is no expert, vocabularies differ, or a key is empty in tokens or begins
            with another one.
    """

    def __init__(self, experts: Mapping[str, Expert], tokenizer: TextTokenizer) -> None:
        known = {(e.vocab_size, tuple(e.special)) for e in experts.values()}
        if len(known) != 1:
            raise ValueError(
                "experts must be at least one, all with the same vocabulary size and special "
                f"tokens, got {known or 'none'}"
            )
        super().__init__(tokenizer.special)
        self.experts = tuple(experts.values())
        self.keys = dict(zip(experts, map(tuple, tokenizer.encode(list(experts))), strict=True))
        _check_keys(self.keys)

    @property
    def vocab_size(self) -> int | None:
        """V, the size of all experts' vocabulary; None if unknown."""
        return self.experts[0].vocab_size

    @property
    def largest_k(self) -> int | None:
        """Largest k that every expert gives."""
        limits = [each.largest_k for each in self.experts if each.largest_k is not None]
        return min(limits, default=None)

    @property
    def queries(self) -> Queries:
        """Number and cost of the queries that all experts together have answered."""
        return sum((each.queries for each in self.experts), Queries())

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T, V) logits of each row's expert."""
        (logits,) = self._asked(trajectories, lambda expert, own: (expert.logits(own),))
        return logits

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """Return the most probable next token of each row's expert, (B, T) int64."""
        (best,) = self._asked(trajectories, lambda expert, own: (expert.best_actions(own),))
        return best

    def top_k(self, trajectories: Trajectories, k: int) -> TopK:
        """Return the `k` most probable next tokens of each row's expert, and its tail."""

        def ask(expert: Expert, own: Trajectories) -> tuple[Tensor, ...]:
            answer = expert.top_k(own, k)
            return tuple(getattr(answer, field.name) for field in fields(TopK))

        return TopK(*self._asked(trajectories, ask))

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Return the examples with a text of each row's expert as reference."""

        def ask(expert: Expert, own: Examples) -> tuple[Tensor]:
            return (expert.write(own, max_steps=max_steps, beam_size=beam_size).reference,)

        (texts,) = self._asked(examples, ask)
        return replace(examples, reference=texts)

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """Return (N, C, T) int64, the C best texts of each row's expert."""

        def ask(expert: Expert, own: Examples) -> tuple[Tensor]:
            return (expert.write_n_best(own, max_steps=max_steps, beam_size=beam_size),)

        (texts,) = self._asked(examples, ask)
        return texts

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """Return the examples with texts sampled from each row's expert as references."""

        def ask(expert: Expert, own: Examples) -> tuple[Tensor]:
            drawn = expert.sample(own, max_steps=max_steps, sampling=sampling, generator=generator)
            return (drawn.reference,)

        (texts,) = self._asked(examples, ask)
        return replace(examples, reference=texts)

    def start(self, source: Tensor, max_steps: int) -> KeyedCache:
        """Return the caches of all experts; rows of others are sources without a word to them."""
        chosen, caches = self.chosen(source), []
        for place, (expert, key) in enumerate(self._with_keys()):
            bare = source[:, len(key) :]
            wordless = torch.full_like(bare, self.special.pad)
            wordless[:, 0] = self.special.end
            own = (chosen == place)[:, None]
            caches.append(expert.start(bare.where(own, wordless), max_steps))
        return KeyedCache(chosen, tuple(caches))

    def step(self, state: State, previous: Tensor, cache: KeyedCache) -> tuple[Tensor, KeyedCache]:
        """Step every expert and return the logits of each row's own, (B, V)."""
        logits, caches = [], []
        for place, (expert, own) in enumerate(zip(self.experts, cache.caches, strict=True)):
            others = cache.chosen != place
            seen = replace(state, terminated=state.terminated | others)
            answer, after = expert.step(seen, previous, own)
            logits.append(answer)
            caches.append(after)
        rows = torch.arange(len(previous), device=previous.device)
        return torch.stack(logits)[cache.chosen, rows], KeyedCache(cache.chosen, tuple(caches))

    def chosen(self, view: Tensor) -> Tensor:
        """Return the place of the expert that each row's key names, (B,) int64.

        Args:
            view: (B, E) int64, what the expert reads, the key first.

        Raises:
            ExpertError: a row begins with no key.
        """
        found = [_begins_with(view, key) for key in self.keys.values()]
        named = torch.stack(found)
        if not named.any(0).all():
            raise ExpertError(
                f"the expert's view must begin with one of the keys {', '.join(self.keys)}, got "
                f"{int((~named.any(0)).sum())} rows that do not: write them there "
                "(with_expert_keys)"
            )
        return named.int().argmax(0)

    def _with_keys(self) -> list[tuple[Expert, tuple[int, ...]]]:
        return list(zip(self.experts, self.keys.values(), strict=True))

    def _asked(self, rows: Rows, ask: Callable[[Expert, Rows], tuple[Tensor, ...]]) -> list[Tensor]:
        """Return the tensors that `ask` returns for each expert's own rows, put together."""
        chosen, places, answers = self.chosen(rows.expert_view), [], []
        for place, (expert, key) in enumerate(self._with_keys()):
            own = (chosen == place).nonzero().squeeze(1)
            if len(own):
                part = rows.select(own)
                bare = part.expert_view[:, len(key) :]
                answers.append(ask(expert, replace(part, expert_source=bare)))
                places.append(own)
        order = torch.cat(places).argsort()
        return [_stacked_rows(parts)[order] for parts in zip(*answers, strict=True)]


def _check_keys(keys: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ValueError` unless the beginning of a view names one of the keys at most."""
    for name, key in keys.items():
        if not key:
            raise ValueError(f"keys must have at least one token, got {name!r}")
        for other, longer in keys.items():
            if other != name and longer[: len(key)] == key:
                raise ValueError(
                    f"keys must not begin with one another, got {name!r} and {other!r} in tokens"
                )


def _begins_with(view: Tensor, key: tuple[int, ...]) -> Tensor:
    """Return a (B,) bool mask, True for the rows of (B, E) that begin with `key`."""
    if view.shape[1] < len(key):
        return torch.zeros(len(view), dtype=torch.bool, device=view.device)
    return (view[:, : len(key)] == view.new_tensor(key)).all(1)


def _stacked_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return all rows of (B, L, ...) tensors of several experts, as one precision holds them."""
    dtype = parts[0].dtype
    return torch.cat([part.to(dtype) for part in parts])
