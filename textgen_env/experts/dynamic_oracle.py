"""An expert that needs no teacher: the next token that leads to the reference with fewest edits.

At any prefix, good or bad, the best that can still be reached is known from the edit distances
between the prefix and all beginnings of the reference. This is a dynamic oracle (Goldberg and Nivre
2012), here that of optimal completion distillation (Sabour et al. 2019).
"""

import time
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.scripted import SURE
from textgen_env.types import Examples, SpecialTokens, Trajectories

FIRST = 1e-3  # nats of the best action above the other optimal ones, so that it is the only best


@dataclass(frozen=True)
class ReferenceCache:
    """What is known of the prefixes of B episodes.

    Attributes:
        reference: (B, R + 1) int64, END at its end and PAD after it.
        distance: (B, R + 1) int64: [:, j] is the edit distance of the prefix to the first j tokens.
    """

    reference: Tensor
    distance: Tensor

    def select_rows(self, index: Tensor) -> Self:
        """The rows at `index`."""
        return type(self)(self.reference[index], self.distance[index])

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Row index[i] of `fresh` as row i where `mask` is True."""
        rows, new = mask[:, None], fresh.select_rows(index)
        return type(self)(
            new.reference.where(rows, self.reference), new.distance.where(rows, self.distance)
        )


class DynamicOracle(Expert):
    """Knows the reference and what is best after a mistake: no teacher is asked.

    An action is optimal if some text that goes on with it has the fewest edits (insertions,
    deletions, substitutions of a token) from the reference that the prefix still allows; the length
    limit is not looked at. The best action is the optimal one that comes earliest in the reference.
    Logits spread the mass evenly over the optimal actions, but for a thousandth more on the best,
    and are finite.

    Labels are by the references of the trajectories. To go along step by step it has to know the
    reference of each source, and looks it up among its examples by the expert's view of it.

    Args:
        examples: with every source of the episodes that it goes along with; of those with the same
            source the first counts.
        vocab_size: V.
        special: the ids of padding, start and end.

    Source: Sabour et al. 2019, section 3, arXiv:1810.01398; Goldberg and Nivre 2012.
    """

    def __init__(
        self, examples: Examples, vocab_size: int, special: SpecialTokens | None = None
    ) -> None:
        super().__init__(special)
        self._vocab_size = vocab_size
        self._reference = _ended(examples.reference, self.special)
        self._place: dict[tuple[int, ...], int] = {}
        for place, key in enumerate(self._keys(examples.expert_view)):
            self._place.setdefault(key, place)

    @property
    def vocab_size(self) -> int:
        """V of its logits."""
        return self._vocab_size

    @torch.no_grad()
    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """(B, T) int64, the optimal action that comes earliest in the reference, at every state."""
        start = time.perf_counter()
        reference, cost = self._costs(trajectories)
        self.count(trajectories.mask.sum(), start)
        return reference.gather(1, cost.argmin(-1))

    @torch.no_grad()
    def logits(self, trajectories: Trajectories) -> Tensor:
        """(B, T, V) float32."""
        start = time.perf_counter()
        reference, cost = self._costs(trajectories)
        logits = self._spread(reference[:, None].expand_as(cost), cost)
        self.count(trajectories.mask.sum(), start)
        return logits

    def start(self, source: Tensor, max_steps: int) -> ReferenceCache:
        """The references of these sources. They are looked up on the host, which waits for it.

        Raises:
            ExpertError: a source is not among the examples.
        """
        try:
            places = [self._place[key] for key in self._keys(source)]
        except KeyError as error:
            raise ExpertError(
                "source must be among the examples that the reference expert was made from, got "
                f"tokens {error.args[0]}: make it from the environment's examples"
            ) from None
        reference = self._reference[torch.tensor(places)].to(source.device)
        return ReferenceCache(reference, _first_distances(reference))

    @torch.no_grad()
    def step(
        self, state: State, previous: Tensor, cache: ReferenceCache
    ) -> tuple[Tensor, ReferenceCache]:
        """(B, V) float32; a state is counted for every episode that is not over."""
        start = time.perf_counter()
        reference, before = cache.reference, cache.distance
        begun = (state.length > 0)[:, None]
        distance = _next_distances(before, previous, reference).where(begun, before)
        logits = self._spread(reference, self._cost(reference, distance))
        self.count(state.alive.sum(), start)
        return logits, ReferenceCache(reference, distance)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """The references as they are: with no mistake made, the next token of them is best."""
        start = time.perf_counter()
        written = _ended(examples.reference, self.special)[:, :max_steps]
        self.count((written != self.special.pad).sum(), start)
        return replace(examples, reference=written)

    def _costs(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """References (B, R + 1) and (B, T, R + 1) the edits of the prefix before every step."""
        reference = _ended(trajectories.reference, self.special)
        distances = [_first_distances(reference)]
        for action in trajectories.actions[:, :-1].unbind(1):
            distances.append(_next_distances(distances[-1], action, reference))
        return reference, self._cost(reference[:, None], torch.stack(distances, 1))

    def _cost(self, reference: Tensor, distance: Tensor) -> Tensor:
        """(..., R + 1) edits of a text that goes on with the reference from each of its tokens."""
        never = torch.iinfo(distance.dtype).max
        return distance.masked_fill(reference == self.special.pad, never)

    def _spread(self, tokens: Tensor, cost: Tensor) -> Tensor:
        """(..., V) float32: SURE for the tokens (..., R + 1) of least cost, 0 for all others."""
        least, place = cost.min(-1, keepdim=True)
        best = torch.zeros_like(cost, dtype=torch.float32).scatter(-1, place, FIRST)
        height = SURE * (cost == least) + best
        logits = torch.zeros(*cost.shape[:-1], self._vocab_size, device=cost.device)
        return logits.scatter_reduce(-1, tokens, height, "amax")  # a token may come twice

    def _keys(self, source: Tensor) -> list[tuple[int, ...]]:
        pad = self.special.pad
        return [tuple(token for token in row if token != pad) for row in source.tolist()]


def _ended(reference: Tensor, special: SpecialTokens) -> Tensor:
    """(B, R + 1) int64: references (B, R) with an end token, whether they had one or not."""
    within = (reference != special.pad) & (reference != special.end)
    wider = F.pad(reference, (0, 1), value=special.pad)
    return wider.scatter(1, within.sum(1, keepdim=True), special.end)


def _first_distances(reference: Tensor) -> Tensor:
    """(B, R + 1) int64 edits from the empty text to each beginning of the references."""
    return torch.arange(reference.shape[1], device=reference.device).expand_as(reference)


def _next_distances(distance: Tensor, action: Tensor, reference: Tensor) -> Tensor:
    """(B, R + 1) int64 edits to each beginning of the references, with `action` (B,) written.

    A row of the table of Wagner and Fischer 1974. Deletions run along the row, so that they are a
    running minimum of the costs of which each column's own number is taken off.
    """
    columns = torch.arange(distance.shape[1], device=distance.device)
    substituted = distance[:, :-1] + (reference[:, :-1] != action[:, None])
    inserted = distance + 1
    cost = torch.cat([inserted[:, :1], torch.minimum(inserted[:, 1:], substituted)], 1)
    return (cost - columns).cummin(1).values + columns
