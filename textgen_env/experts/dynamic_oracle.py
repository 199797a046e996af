"""Dynamic oracle: an expert without a teacher, which minimizes the edit distance to the reference.

The edit distances between a prefix and all prefixes of the reference tell which next tokens lead to
the fewest edits, after any mistakes. Dynamic oracles are due to Goldberg and Nivre (2012); this one
is that of optimal completion distillation (Sabour et al. 2019).
"""

import time
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.scripted import BEST_ACTION_LOGIT
from textgen_env.types import Examples, SpecialTokens, Trajectories

TIE_BREAK = 1e-3  # nats of the best action above the other optimal actions


@dataclass(frozen=True)
class ReferenceCache:
    """References of B episodes and the edit distances of their prefixes.

    Attributes:
        reference: (B, R + 1) int64, PAD after the end token.
        distance: (B, R + 1) int64; [:, j] is the edit distance between the prefix and the first j
            tokens of the reference.
    """

    reference: Tensor
    distance: Tensor

    def select_rows(self, index: Tensor) -> Self:
        """Return the cache of the rows at `index`, (K,) int64."""
        return type(self)(self.reference[index], self.distance[index])

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row index[i] of `fresh` as row i where `mask` is True."""
        rows, new = mask[:, None], fresh.select_rows(index)
        return type(self)(
            new.reference.where(rows, self.reference), new.distance.where(rows, self.distance)
        )


class DynamicOracle(Expert):
    """Expert that knows the reference and the optimal actions after any prefix.

    An action is optimal if some continuation that begins with it reaches the smallest edit distance
    to the reference that the prefix still allows. Edits are insertions, deletions and substitutions
    of tokens; the length limit is ignored. The best action is the optimal one that comes earliest
    in the reference. Distributions are uniform over the optimal actions, but that the logit of the
    best one is 0.001 higher; all logits are finite.

    Labels of trajectories use the references of the trajectories. `start` looks up the reference of
    each source in `examples`, by the expert's view of the source.

    Args:
        examples: examples with the source of every episode that is stepped; the first one counts
            where several have the same source; each has a reference.
        vocab_size: V.
        special: the ids of padding, start and end.

    Raises:
        ValueError: an example has no reference.

    Source: Sabour et al. 2019, section 3, arXiv:1810.01398; Goldberg and Nivre 2012.
    """

    def __init__(
        self, examples: Examples, vocab_size: int, special: SpecialTokens | None = None
    ) -> None:
        super().__init__(special)
        without = len(examples) - int(examples.has_reference(self.special).sum())
        if without:
            raise ValueError(
                f"examples must have references for the dynamic oracle, got {without:,} of "
                f"{len(examples):,} without: take a model as the expert (NeuralExpert)"
            )
        self._vocab_size = vocab_size
        self._reference = _with_end_token(examples.reference, self.special)
        self._row_of_source: dict[tuple[int, ...], int] = {}
        for row, key in enumerate(self._source_keys(examples.expert_view)):
            self._row_of_source.setdefault(key, row)

    @property
    def vocab_size(self) -> int:
        """V, the size of the expert's vocabulary."""
        return self._vocab_size

    @torch.no_grad()
    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T) int64, at each state the optimal action earliest in the reference."""
        start = time.perf_counter()
        reference, cost = self._costs(trajectories)
        self.count(trajectories.mask.sum(), start)
        return reference.gather(1, cost.argmin(-1))

    @torch.no_grad()
    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T, V) float32 logits; only optimal actions have more than 0."""
        start = time.perf_counter()
        reference, cost = self._costs(trajectories)
        logits = self._logits_of_costs(reference[:, None].expand_as(cost), cost)
        self.count(trajectories.mask.sum(), start)
        return logits

    def start(self, source: Tensor, max_steps: int) -> ReferenceCache:
        """Look up the references of these sources on the host, which waits for the device.

        Raises:
            ExpertError: a source is not among the examples.
        """
        try:
            rows = [self._row_of_source[key] for key in self._source_keys(source)]
        except KeyError as error:
            raise ExpertError(
                "source must be among the examples that the dynamic oracle was made from, got "
                f"tokens {error.args[0]}: make it from the environment's examples"
            ) from None
        reference = self._reference[torch.tensor(rows)].to(source.device)
        return ReferenceCache(reference, _first_distances(reference))

    @torch.no_grad()
    def step(
        self, state: State, previous: Tensor, cache: ReferenceCache
    ) -> tuple[Tensor, ReferenceCache]:
        """Return (B, V) float32 logits; each episode that is not over counts as one query."""
        start = time.perf_counter()
        reference, before = cache.reference, cache.distance
        begun = (state.length > 0)[:, None]
        distance = _next_distances(before, previous, reference).where(begun, before)
        logits = self._logits_of_costs(reference, self._cost(reference, distance))
        self.count(state.alive.sum(), start)
        return logits, ReferenceCache(reference, distance)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Return the examples with their references, which are optimal from the empty prefix."""
        start = time.perf_counter()
        texts = _with_end_token(examples.reference, self.special)[:, :max_steps]
        self.count((texts != self.special.pad).sum(), start)
        return replace(examples, reference=texts)

    def _costs(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Return (B, R + 1) references and (B, T, R + 1) costs of their tokens at each state."""
        reference = _with_end_token(trajectories.reference, self.special)
        distances = [_first_distances(reference)]
        for action in trajectories.actions[:, :-1].unbind(1):
            distances.append(_next_distances(distances[-1], action, reference))
        return reference, self._cost(reference[:, None], torch.stack(distances, 1))

    def _cost(self, reference: Tensor, distance: Tensor) -> Tensor:
        """Return (..., R + 1) edits of the text if the reference is followed from each token on."""
        never = torch.iinfo(distance.dtype).max
        return distance.masked_fill(reference == self.special.pad, never)

    def _logits_of_costs(self, tokens: Tensor, cost: Tensor) -> Tensor:
        """Return (..., V) float32 logits, 0 but for the tokens (..., R + 1) of least cost."""
        least, index = cost.min(-1, keepdim=True)
        best = torch.zeros_like(cost, dtype=torch.float32).scatter(-1, index, TIE_BREAK)
        values = BEST_ACTION_LOGIT * (cost == least) + best
        logits = torch.zeros(*cost.shape[:-1], self._vocab_size, device=cost.device)
        return logits.scatter_reduce(-1, tokens, values, "amax")  # a reference may repeat a token

    def _source_keys(self, source: Tensor) -> list[tuple[int, ...]]:
        """Return each source's tokens without padding."""
        pad = self.special.pad
        return [tuple(token for token in row if token != pad) for row in source.tolist()]


def _with_end_token(reference: Tensor, special: SpecialTokens) -> Tensor:
    """Return (B, R + 1) references that all have an end token, of (B, R) with or without one."""
    within = (reference != special.pad) & (reference != special.end)
    wider = F.pad(reference, (0, 1), value=special.pad)
    return wider.scatter(1, within.sum(1, keepdim=True), special.end)


def _first_distances(reference: Tensor) -> Tensor:
    """Return (B, R + 1) int64 edit distances of the empty prefix to all prefixes of references."""
    return torch.arange(reference.shape[1], device=reference.device).expand_as(reference)


def _next_distances(distance: Tensor, action: Tensor, reference: Tensor) -> Tensor:
    """Return (B, R + 1) int64 edit distances after `action`, (B,), is appended to the prefixes.

    The result is the next row of the table of Wagner and Fischer (1974).
    """
    columns = torch.arange(distance.shape[1], device=distance.device)
    substituted = distance[:, :-1] + (reference[:, :-1] != action[:, None])
    inserted = distance + 1
    # The recurrence of deletions, d[j] = min(c[j], d[j - 1] + 1), is a running minimum of c[j] - j.
    cost = torch.cat([inserted[:, :1], torch.minimum(inserted[:, 1:], substituted)], 1)
    return (cost - columns).cummin(1).values + columns
