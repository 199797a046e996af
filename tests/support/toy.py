"""Small `SequenceModel`s: one to enumerate all it can write, one with texts of all lengths.

And what tests of losses need, given logits and records of given texts; and actions that are taken.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from textgen_env.models.hidden_states import StatesAt
from textgen_env.models.recurrent_units import SRUPlusPlus
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.types import Examples, SpecialTokens, Trajectories

SPECIAL = SpecialTokens(pad=0, start=1, end=2)


@dataclass(frozen=True)
class TabularCache:
    """Where each row's logits will be found."""

    state: torch.Tensor  # (B,) int64, the row of the table before the previous token is known

    def select_rows(self, index):
        return replace(self, state=self.state[index])

    def repeat_rows(self, count):
        return replace(self, state=self.state.repeat_interleave(count))

    def reorder_rows(self, index):
        return self.select_rows(index)

    def reset_rows(self, mask, fresh, index):
        return replace(self, state=fresh.state[index].where(mask, self.state))

    def rewind(self, history, index):
        states = torch.stack([each.state for each in history])
        return replace(self, state=states.gather(0, index[None])[0])


class TabularModel:
    """Random logits for every source and prefix.

    A source's first token is all that is read of it, and `max_steps` tokens of a text. `calls`
    counts the rows of every step.
    """

    special = SPECIAL

    def __init__(self, vocab_size=5, sources=6, max_steps=5, scale=1.0, seed=0):
        self.vocab_size = vocab_size
        generator = torch.Generator().manual_seed(seed)
        states = sources * vocab_size ** (max_steps + 1)
        self.table = scale * torch.randn(states, vocab_size, generator=generator)
        self.calls = []

    def start(self, source, max_steps):
        return TabularCache(source[:, 0] - 3)

    def step(self, previous, cache):
        self.calls.append(len(previous))
        state = cache.state * self.vocab_size + previous
        return self.table[state % len(self.table)], replace(cache, state=state)

    def step_block(self, tokens, cache):
        return step_by_step(self, tokens, cache)

    def sequence_logits(self, source, actions):
        cache, previous, logits = self.start(source, 0), torch.full_like(source[:, 0], 1), []
        for action in actions.unbind(1):
            step_logits, cache = self.step(previous, cache)
            logits.append(step_logits)
            previous = action
        return torch.stack(logits, 1)

    def sources(self, count):
        """(count, 2) sources, each followed by the end token."""
        return torch.stack([torch.arange(count) + 3, torch.full((count,), SPECIAL.end)], 1)


def step_by_step(model, tokens, cache):
    """Return what `step_block` does, by steps."""
    logits, caches = [], []
    for token in tokens.unbind(1):
        answer, cache = model.step(token, cache)
        logits.append(answer)
        caches.append(cache)
    return torch.stack(logits, 1), caches


@dataclass(frozen=True)
class LivelyCache:
    """The cache of the model inside, and how many tokens each row has."""

    inner: Any
    length: torch.Tensor  # (B,)

    def select_rows(self, index):
        return LivelyCache(self.inner.select_rows(index), self.length[index])

    def repeat_rows(self, count):
        return LivelyCache(self.inner.repeat_rows(count), self.length.repeat_interleave(count))

    def reset_rows(self, mask, fresh, index):
        inner = self.inner.reset_rows(mask, fresh.inner, index)
        return LivelyCache(inner, fresh.length[index].where(mask, self.length))

    def reorder_rows(self, index):
        return LivelyCache(self.inner.reorder_rows(index), self.length[index])

    def rewind(self, history, index):
        inner = self.inner.rewind([each.inner for each in history], index)
        lengths = torch.stack([each.length for each in history])
        return LivelyCache(inner, lengths.gather(0, index[None])[0])


def attending(model, scale=0.7):
    """Return the model with the attention of its SRU++ units at work, which begins at 0."""
    for module in model.modules():
        if isinstance(module, SRUPlusPlus):
            nn.init.constant_(module.attention_scale, scale)
    return model


class LivelyModel:
    """An untrained model plus random logits by the previous token and the position.

    By itself an untrained model repeats one token; so its texts vary, and end after 3 to 20 tokens.
    """

    special = SPECIAL

    def __init__(self, inner, max_steps=20, scale=1.5, seed=0):
        self.inner, self.vocab_size = inner, inner.vocab_size
        generator = torch.Generator().manual_seed(seed)
        self.noise = scale * torch.randn(
            max_steps, self.vocab_size, self.vocab_size, generator=generator
        )
        self.noise[..., SPECIAL.end] += scale

    def start(self, source, max_steps):
        return LivelyCache(self.inner.start(source, max_steps), torch.zeros_like(source[:, 0]))

    def step(self, previous, cache):
        logits, inner = self.inner.step(previous, cache.inner)
        return logits + self._noise(cache.length, previous), LivelyCache(inner, cache.length + 1)

    def step_block(self, tokens, cache):
        logits, inner = self.inner.step_block(tokens, cache.inner)
        length = cache.length[:, None] + torch.arange(tokens.shape[1])
        caches = zip(inner, (length + 1).unbind(1), strict=True)
        return logits + self._noise(length, tokens), [LivelyCache(*each) for each in caches]

    def sequence_logits(self, source, actions):
        previous = F.pad(actions[:, :-1], (1, 0), value=SPECIAL.start)
        noise = self._noise(torch.arange(actions.shape[1]), previous)
        return self.inner.sequence_logits(source, actions) + noise

    def _noise(self, length, previous):
        return self.noise[length.clamp(max=len(self.noise) - 1), previous]


def lively_transformer():
    """Return a `LivelyModel` with a small Transformer over 30 tokens inside."""
    torch.manual_seed(0)
    config = TransformerConfig(30, width=32, num_heads=2, feed_forward=64)
    return LivelyModel(Transformer(config).eval().requires_grad_(False))


def random_sources(count, longest, vocab_size=30):
    """(count, longest) sources of 1 to `longest` tokens, the end token included."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.randint(3, vocab_size, (count, longest), generator=generator)
    length = torch.randint(1, longest + 1, (count, 1), generator=generator)
    positions = torch.arange(longest)
    rows = rows.masked_fill(positions == length - 1, SPECIAL.end)
    return rows.masked_fill(positions >= length, SPECIAL.pad)


class Given(nn.Module):
    """A student, and an expert, that has the same logits (B, T, V) whatever it is asked about."""

    special = SPECIAL

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Parameter(logits)

    @property
    def vocab_size(self):
        return self.table.shape[-1]

    def sequence_logits(self, source, actions):
        return self.table

    def logits(self, trajectories):
        return self.table.detach()

    def states_at(self, trajectories, positions):
        return StatesAt.of_logits(positions.gather(self.logits(trajectories)))


def record(*texts):
    """Trajectories of texts given as lists of tokens, written by the data."""
    width = max(map(len, texts))
    actions = torch.tensor([[*text, *[SPECIAL.pad] * (width - len(text))] for text in texts])
    return Trajectories.from_examples(Examples(actions, actions), SPECIAL)


def permitted(env, actions):
    """`actions`, (B,), with PAD where the episode is over: what mode `DISABLED` takes."""
    return actions.masked_fill(env.state.done, env.special.pad)


def random_texts(rows):
    """Return sources and actions of 50 tokens, without an end in the actions."""
    generator = torch.Generator().manual_seed(rows)
    source, actions = (torch.randint(3, 50, (rows, width), generator=generator) for width in (6, 5))
    source[:, -1] = 2
    return source, actions


@torch.no_grad()
def stepped_logits(model, source, actions):
    """Return the logits of actions as a model that is stepped along them gives them."""
    cache, previous = model.start(source, actions.shape[1]), torch.ones_like(source[:, 0])
    logits = []
    for action in actions.T:
        answer, cache = model.step(previous, cache)
        logits.append(answer)
        previous = action
    return torch.stack(logits, 1)
