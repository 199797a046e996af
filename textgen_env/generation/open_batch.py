"""Continuous batching of texts that come one by one: each joins a batch that is being written.

A text begins in a row that has ended, whose part of the cache is replaced (`reset_rows`), as slots
of the environment begin their next episode. There the order of examples is known in advance; here
nobody knows which text comes next. The batch has as many rows as it needs: it grows when texts
join, and loses rows that have ended as `decode_all` does.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textgen_env.bounds import check_at_least
from textgen_env.generation.decoding import check_unseen_logits, next_action, rows_to_keep
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import AnyCache, SequenceModel


@dataclass(eq=False)
class OpenText:
    """Text that is being written, or waits for it.

    Attributes:
        source: (S,) int64, the end token included, on the model's device.
        max_tokens: most tokens of the text, at least 1.
        sampling: distribution to sample from; None for the most probable tokens.
        generator: source of randomness of this text alone; needed for sampling.
        tokens: tokens written so far, the end token included.

    Raises:
        ValueError: `max_tokens` below 1, or `sampling` without a generator.
    """

    source: Tensor
    max_tokens: int
    sampling: Sampling | None = None
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_at_least(self, max_tokens=1)
        if self.sampling is not None and self.generator is None:
            raise ValueError("generator must be a torch.Generator when sampling, got None")


@dataclass
class OpenBatch:
    """Batch that texts join and leave while it is written.

    A text does not depend on the others, but for the rounding of sums: greedy texts are those of
    `greedy`, and a sampled text has a generator of its own. The host reads the tokens of each step.

    Attributes:
        model: in evaluation mode.
        slots: most texts that are written at once, at least 1.
        max_steps: most tokens of any text, at least 1.
        is_refilled: False for models whose rows must begin together; texts then wait until all
            others are written.
    """

    model: SequenceModel
    slots: int
    max_steps: int
    is_refilled: bool = True
    _rows: list[OpenText | None] = field(default_factory=list, init=False)
    _cache: AnyCache = field(default=None, init=False)
    _previous: Tensor = field(default_factory=lambda: torch.zeros(0), init=False)

    def __post_init__(self) -> None:
        check_at_least(self, slots=1, max_steps=1)

    @property
    def texts(self) -> list[OpenText]:
        """Texts that are being written."""
        return [text for text in self._rows if text is not None]

    @property
    def room(self) -> int:
        """Number of texts that may join now."""
        running = len(self.texts)
        return 0 if running and not self.is_refilled else self.slots - running

    @torch.inference_mode()
    def join(self, texts: Sequence[OpenText]) -> None:
        """Read the sources of `texts` together, and let the next step write their first tokens.

        Args:
            texts: at least one, and no more than there is room for.

        Raises:
            ValueError: there is no room, a text may be longer than `max_steps`, or the model cannot
                read a source. The batch is as it was.
        """
        if not 1 <= len(texts) <= self.room:
            raise ValueError(f"texts must be from 1 to {self.room}, got {len(texts)}")
        longest = max(text.max_tokens for text in texts)
        if longest > self.max_steps:
            raise ValueError(f"max_tokens must be at most {self.max_steps}, got {longest}")
        special = self.model.special
        sources = pad_sequence([text.source for text in texts], True, special.pad)
        fresh = self.model.start(sources, self.max_steps)
        if not self.texts:
            self._rows, self._cache = list(texts), fresh
            self._previous = sources.new_full((len(texts),), special.start)
            return
        taken = self._free_rows(len(texts))
        rows = sources.new_tensor(taken)
        index = sources.new_zeros(len(self._rows))
        index[rows] = torch.arange(len(texts), device=index.device)
        mask = torch.zeros_like(index, dtype=torch.bool)
        mask[rows] = True
        self._cache = self._cache.reset_rows(mask, fresh, index)
        self._previous = self._previous.masked_fill(mask, special.start)
        for row, text in zip(taken, texts, strict=True):
            self._rows[row] = text

    @torch.inference_mode()
    def step(self) -> list[OpenText]:
        """Write one token of every text, and return those that have ended with it.

        A text ends with the end token, or with its last token that is allowed.

        Raises:
            LogitsError: the model gives no token of a text; `clear` the batch then.
            RuntimeError: there is no text.
        """
        if not self.texts:
            raise RuntimeError("step must come after a text has joined, got none: call join first")
        self._drop_ended_rows()
        logits, self._cache = self.model.step(self._previous, self._cache)
        self._previous = self._choose(logits)
        ended, end = [], self.model.special.end
        for row, token in enumerate(self._previous.tolist()):
            text = self._rows[row]
            if text is None:
                continue
            text.tokens.append(token)
            if token == end or len(text.tokens) == text.max_tokens:
                ended.append(text)
        self.leave(ended)
        return ended

    def leave(self, texts: Collection[OpenText]) -> None:
        """Write no more of `texts`: their rows are free for others."""
        self._rows = [None if text in texts else text for text in self._rows]

    def clear(self) -> None:
        """Drop all texts and what is known of them."""
        self._rows, self._cache = [], None

    def _choose(self, logits: Tensor) -> Tensor:
        """Return the next token of each row, (R,) int64, for (R, V) logits."""
        special = self.model.special
        mask = torch.tensor([text is not None for text in self._rows], device=logits.device)
        check_unseen_logits(logits)
        tokens = next_action(logits, special=special, mask=mask)
        for row, text in enumerate(self._rows):
            if text is not None and text.sampling is not None:
                own = logits[row : row + 1]
                tokens[row] = next_action(own, text.sampling, text.generator, special=special)
        return tokens

    def _free_rows(self, count: int) -> list[int]:
        """Return rows without a text, and add those that are missing."""
        rows = len(self._rows)
        free = [row for row, text in enumerate(self._rows) if text is None]
        if count > len(free):
            grown = rows + count - len(free)
            numbers = torch.arange(grown, device=self._previous.device)
            self._select(numbers.masked_fill(numbers >= rows, 0))
            self._rows[rows:] = [None] * (grown - rows)
            free += range(rows, grown)
        return free[:count]

    def _drop_ended_rows(self) -> None:
        """Drop the rows without a text once they are many."""
        ended = torch.tensor([text is None for text in self._rows], device=self._previous.device)
        kept = rows_to_keep(ended)
        if kept is not None:
            self._select(kept)

    def _select(self, index: Tensor) -> None:
        """Make row i what row index[i] is; `index` is (K,) int64."""
        self._cache = self._cache.select_rows(index)
        self._previous = self._previous.index_select(0, index)
        self._rows = [self._rows[row] for row in index.tolist()]
