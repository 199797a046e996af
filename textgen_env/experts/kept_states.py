"""Answers of a frozen teacher about given texts, kept on disk as its last hidden states.

What is kept is exact: a state's logits are the teacher's own product with its hidden state. States
are read through a memory map, so that they take no memory of their own. A text is found by its
tokens, whichever batch it comes in. Answers of remote teachers are kept in `label_cache`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, NeuralExpert
from textgen_env.experts.queries import Queries
from textgen_env.files import write_atomically
from textgen_env.generation.sampling import Sampling
from textgen_env.models.hidden_states import HiddenStates, StatesAt, with_hidden_states
from textgen_env.models.sequence_model import AnyCache
from textgen_env.models.token_positions import TokenPositions
from textgen_env.types import Examples, SpecialTokens, Trajectories

Key = bytes
"""Digest of a source as the expert reads it, and of a text."""


@dataclass(frozen=True)
class KeptTexts:
    """Texts whose states are kept, in the order of the file.

    Attributes:
        examples: the texts, each of which is there once, by length.
        width: D of the hidden states.
        dtype: dtype of the hidden states.
        special: ids of padding, start and end.
    """

    examples: Examples
    width: int
    dtype: torch.dtype
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.examples)

    @classmethod
    def that_fit(
        cls, examples: Examples, model: HiddenStates, special: SpecialTokens, max_bytes: float
    ) -> "KeptTexts":
        """Return the first of the examples whose states fit, without repetitions.

        Args:
            examples: at least one, on the model's device.
            model: teacher; it answers about one state of the first example.
            special: ids of padding, start and end.
            max_bytes: largest size of the states, at least 0.
        """
        with torch.no_grad():
            end = torch.full_like(examples.source[:1, :1], special.end)
            probe = model.hidden(examples.expert_view[:1], end)
        room = int(max_bytes // (probe.shape[-1] * probe.itemsize))
        states = Trajectories.from_examples(examples, special)
        chosen: dict[Key, int] = {}
        for row, (key, length) in enumerate(_text_digests(states, special)):
            if key in chosen or not length:
                continue
            room -= length
            if room < 0:
                break
            chosen[key] = row
        rows = torch.tensor(list(chosen.values()), dtype=torch.int64)
        by_length = states.mask.sum(1).cpu()[rows].argsort(stable=True)
        rows = rows[by_length].to(examples.source.device)
        return cls(examples.select(rows), probe.shape[-1], probe.dtype, special)

    @cached_property
    def num_states(self) -> int:
        """Number of states of all texts."""
        return int((self.examples.reference != self.special.pad).sum())

    @property
    def num_bytes(self) -> int:
        """Size of the file of states, in bytes."""
        return self.num_states * self.width * self.dtype.itemsize

    @torch.no_grad()
    def write(
        self, path: Path, model: HiddenStates, batch_size: int, advance: Callable[[], None]
    ) -> None:
        """Ask the teacher about all texts, at least one, and write its hidden states to a file.

        Args:
            path: path of the file, which is written beside it and renamed.
            model: the teacher.
            batch_size: texts of one pass.
            advance: is called after each pass.

        Raises:
            WriteError: the file cannot be written.
        """

        def write(beside: Path) -> None:
            with beside.open("wb") as file:
                for rows in torch.arange(len(self)).split(batch_size):
                    examples = self.examples.select(rows).trimmed(self.special)
                    states = Trajectories.from_examples(examples, self.special)
                    hidden = model.hidden(states.expert_view, states.actions)
                    file.write(hidden[states.mask].cpu().view(torch.uint8).numpy().data)
                    advance()

        write_atomically(path, write, self.num_bytes)

    def read(self, path: Path) -> "KeptStates":
        """Return what `write` wrote to `path`, read through a memory map."""
        numbers = self.num_states * self.width
        states = torch.from_file(str(path), shared=False, size=numbers, dtype=self.dtype)
        return KeptStates(states.view(-1, self.width), self)


class KeptStates:
    """Last hidden states of a teacher at all states of given texts.

    Args:
        states: (K, D), those of one text after those of another.
        texts: the texts, in the same order.
    """

    def __init__(self, states: Tensor, texts: KeptTexts) -> None:
        self.states, self.special = states, texts.special
        self._first: dict[Key, int] = {}
        first = 0
        trajectories = Trajectories.from_examples(texts.examples, texts.special)
        for key, length in _text_digests(trajectories, texts.special):
            self._first[key] = first
            first += length

    def find(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Return the hidden states of the trajectories whose texts are kept.

        Returns:
            (B, T, D), 0 where nothing is known, on the trajectories' device; and a (B,) bool mask
            on the CPU, True for rows whose text is kept.
        """
        found = [(self._first.get(key), n) for key, n in _text_digests(trajectories, self.special)]
        is_known = torch.tensor([first is not None for first, _ in found])
        first = torch.tensor([first or 0 for first, _ in found])[:, None]
        length = torch.tensor([length for _, length in found])[:, None]
        position = torch.arange(trajectories.actions.shape[1])[None]
        kept = (position < length) & is_known[:, None]
        hidden = self.states.new_zeros(*kept.shape, self.states.shape[1])
        hidden[kept] = self.states[(first + position)[kept]]
        return hidden.to(trajectories.source.device), is_known


class KeptStatesExpert(Expert):
    """Teacher that is asked no more about texts whose states are kept.

    Rows of other texts are asked about together, and counted. A state may be answered with another
    rounding than in a batch of other rows.

    Args:
        inner: the teacher.
        kept: its states.

    Raises:
        ValueError: the teacher has no hidden states.
    """

    def __init__(self, inner: NeuralExpert, kept: KeptStates) -> None:
        super().__init__(inner.special)
        model = with_hidden_states(inner.model)
        if model is None:
            raise ValueError(
                "inner must answer with a model that has hidden states, got one of "
                f"{type(inner.model).__name__}: query it itself"
            )
        self.inner, self.model, self.kept = inner, model, kept

    @property
    def vocab_size(self) -> int:
        """V, the size of the expert's vocabulary."""
        return self.inner.vocab_size

    @property
    def queries(self) -> Queries:
        """Number and cost of the queries that were not answered from what is kept."""
        return self.inner.queries

    @torch.no_grad()
    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T, V) logits; entries at padding have no meaning."""
        return self.model.project(self._hidden(trajectories))

    @torch.no_grad()
    def states_at(self, trajectories: Trajectories, positions: TokenPositions) -> StatesAt:
        """Return the hidden states at K of the states, and their product with the head."""
        hidden = positions.gather(self._hidden(trajectories))
        return StatesAt(hidden, torch.no_grad()(self.model.project), self.vocab_size)

    def _hidden(self, trajectories: Trajectories) -> Tensor:
        """Return the (B, T, D) hidden states, kept ones and others."""
        hidden, is_known = self.kept.find(trajectories)
        others = (~is_known).nonzero()[:, 0].to(hidden.device)
        if len(others):
            start, asked = time.perf_counter(), trajectories.select(others)
            answered = self.model.hidden(asked.expert_view, asked.actions)
            hidden[others] = answered.to(hidden.dtype)
            self.inner.count(asked.mask.sum(), start)
        return hidden

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Return the teacher's own cache."""
        return self.inner.start(source, max_steps)

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Step the teacher; each episode that is not over counts as one query."""
        return self.inner.step(state, previous, cache)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Decode by the teacher's beam search."""
        return self.inner.write(examples, max_steps=max_steps, beam_size=beam_size)

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """Return all hypotheses of the teacher's beam search."""
        return self.inner.write_n_best(examples, max_steps=max_steps, beam_size=beam_size)

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """Sample from the teacher's distributions."""
        return self.inner.sample(
            examples, max_steps=max_steps, sampling=sampling, generator=generator
        )


def _text_digests(trajectories: Trajectories, special: SpecialTokens) -> Iterator[tuple[Key, int]]:
    """Yield the key of each row, and the number of its actions up to the last one that counts."""
    sources, actions, mask = (
        tensor.cpu().numpy()
        for tensor in (trajectories.expert_view, trajectories.actions, trajectories.mask)
    )
    widths, lengths = _used(sources != special.pad), _used(mask)
    for source, text, width, length in zip(sources, actions, widths, lengths, strict=True):
        parts = (np.int64(width).tobytes(), source[:width].tobytes(), text[:length].tobytes())
        yield blake2b(b"".join(parts), digest_size=16).digest(), length


def _used(mask: np.ndarray) -> list[int]:
    """Return for each row of a (B, L) bool mask the columns up to its last True."""
    return (mask * np.arange(1, mask.shape[1] + 1)).max(axis=1, initial=0).tolist()
