"""Recurrent encoder-decoder with attention: a student whose step costs the same at every position.

Bidirectional gated recurrent units (Cho et al. 2014, arXiv:1406.1078) read the source, others write
the target, and what they write is joined with what scaled dot-product attention reads from the
source (Luong et al. 2015, section 3, arXiv:1508.04025). There is no input feeding, so all positions
of a finished target are computed in one pass. One matrix embeds source and target and makes the
logits, with unit scale at the start as in `transformer.py`. Dropout acts on embeddings, after each
layer and before the logits (Lin et al. 2020, arXiv:2009.07253). Recurrent layers take time first.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from textgen_env.models.cache_ops import host_sync_is_free, pad_to, scatter_rows_, trim_to
from textgen_env.models.config import ModelConfig
from textgen_env.models.layers import Dropout, TiedEmbedding
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Size of a recurrent model.

    Attributes:
        vocab_size: V.
        width: width of embeddings and decoder, and of both encoder directions together; even.
        num_encoder_layers: layers that read the source, each in both directions.
        num_decoder_layers: layers that write the target.
        dropout: probability, in [0, 0.99].
    """

    vocab_size: int = 4000
    width: int = 192
    num_encoder_layers: int = 2
    num_decoder_layers: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width must be even and at least 2, got {self.width}")
        layers = self.num_encoder_layers, self.num_decoder_layers
        if min(layers) < 1:
            raise ValueError(
                f"num_encoder_layers and num_decoder_layers must be at least 1, got {layers}"
            )

    def build(self, special: SpecialTokens | None = None) -> "Recurrent":
        """Return a `Recurrent` of this size."""
        return Recurrent(self, special)


@dataclass(frozen=True)
class RecurrentCache:
    """The decoder's memory: its states, and the source as attention reads it.

    Attributes:
        states: (N, B, D), the state of each decoder layer.
        source_keys: (B, S, D), the encoder's output; on CPUs in float32, in which a product with
            one query a row takes less than half the time that it takes in bfloat16.
        source_values: (B, S, D), the same, projected once by `start`.
        source_bias: (B, 1, S), added to attention's scores: 0, and minus infinity at padding.
    """

    states: Tensor
    source_keys: Tensor
    source_values: Tensor
    source_bias: Tensor

    def reserve(self) -> Self:
        """The cache itself: the memory does not grow."""
        return self

    def moved(self) -> Self:
        """The cache itself: the host knows nothing of where it is."""
        return self

    def select_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i]."""
        return replace(
            self,
            states=self.states.index_select(1, index),
            source_keys=self.source_keys.index_select(0, index),
            source_values=self.source_values.index_select(0, index),
            source_bias=self.source_bias.index_select(0, index),
        )

    def repeat_rows(self, count: int) -> Self:
        """A cache with `count` copies of each row, side by side."""
        rows = torch.arange(len(self.source_keys), device=self.source_keys.device)
        return self.select_rows(rows.repeat_interleave(count))

    def reorder_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i], a row of the same source."""
        return replace(self, states=self.states.index_select(1, index))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """The cache with row index[i] of `fresh` as its row i where `mask`, (B,) bool, is True."""
        looks = host_sync_is_free(mask.device)
        if looks and not mask.any():
            return self
        width = fresh.source_bias.shape[2]
        keys = pad_to(self.source_keys, width, dim=1)
        values = pad_to(self.source_values, width, dim=1)
        bias = pad_to(self.source_bias, width, dim=2)
        bias.masked_fill_(mask[:, None, None], float("-inf"))
        scatter_rows_(self.states, fresh.states, mask, index, dim=1)
        scatter_rows_(keys[:, :width], fresh.source_keys, mask, index)
        scatter_rows_(values[:, :width], fresh.source_values, mask, index)
        scatter_rows_(bias[..., :width], fresh.source_bias, mask, index)
        if looks:
            tokens = int((bias == 0).sum(-1).max())
            keys, values = (trim_to(memory, tokens, dim=1) for memory in (keys, values))
            bias = trim_to(bias, tokens, dim=2)
        return replace(self, source_keys=keys, source_values=values, source_bias=bias)


class Recurrent(nn.Module):
    """A `SequenceModel`; see the module's docstring for what is particular about it."""

    def __init__(self, config: RecurrentConfig, special: SpecialTokens | None = None) -> None:
        super().__init__()
        width, half = config.width, config.width // 2
        self.config = config
        self.special = special or SpecialTokens()
        self.embedding = TiedEmbedding(config.vocab_size, width)
        self.forward_encoder = _layers(config.num_encoder_layers, width, half)
        self.backward_encoder = _layers(config.num_encoder_layers, width, half)
        self.bridge = nn.Linear(width, config.num_decoder_layers * width)
        self.decoder = _layers(config.num_decoder_layers, width, width)
        self.join_output = nn.Linear(width, width)
        self.join_context = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    def start(self, source: Tensor, max_steps: int) -> RecurrentCache:
        """Encode the source; there is no room to be made for steps."""
        del max_steps
        cache = self._encode(source)
        if source.device.type != "cpu":
            return cache
        return replace(
            cache,
            source_keys=cache.source_keys.float(),
            source_values=cache.source_values.float(),
            source_bias=cache.source_bias.float(),
        )

    def step(self, previous: Tensor, cache: RecurrentCache) -> tuple[Tensor, RecurrentCache]:
        """Logits (B, V) of the next token."""
        hidden, states = self._embed(previous), []
        for cell, state in zip(self.decoder, cache.states.unbind(), strict=True):
            states.append(cell(hidden, state))
            hidden = self.dropout(states[-1])
        logits = self._logits(hidden[:, None], cache).squeeze(1)
        return logits, replace(cache, states=torch.stack(states))

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits (B, T, V) of every action."""
        cache = self._encode(source)
        previous = F.pad(actions[:, :-1], (1, 0), value=self.special.start)
        hidden = self._embed(previous.t())
        for cell, state in zip(_cells(self.decoder), cache.states.unbind(), strict=True):
            hidden = self.dropout(run_gru(cell, hidden, state))
        return self._logits(hidden.transpose(0, 1).contiguous(), cache)

    def _encode(self, source: Tensor) -> RecurrentCache:
        mask = source != self.special.pad
        order = reversal(mask)
        hidden = self._embed(source.t())
        initial = hidden.new_zeros(len(source), self.config.width // 2)
        ahead = back = hidden
        for forward, backward in zip(
            _cells(self.forward_encoder), _cells(self.backward_encoder), strict=True
        ):
            ahead = run_gru(forward, hidden, initial)
            back = _permute(run_gru(backward, _permute(hidden, order), initial), order)
            hidden = self.dropout(torch.cat([ahead, back], dim=-1))
        final = torch.cat([ahead.flatten(0, 1).index_select(0, order[0]), back[0]], dim=-1)
        states = self.bridge(final).tanh().unflatten(-1, (-1, self.config.width))
        keys = hidden.transpose(0, 1).contiguous()  # strided products are slow in bfloat16
        values = self.join_context(keys)
        bias = torch.zeros_like(mask, dtype=values.dtype).masked_fill(~mask, float("-inf"))
        return RecurrentCache(torch.stack(states.unbind(1)), keys, values, bias[:, None])

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens) * math.sqrt(self.config.width))

    def _logits(self, hidden: Tensor, cache: RecurrentCache) -> Tensor:
        """Logits (B, T, V) from the decoder's outputs, (B, T, D).

        Output and context have a projection each: that of the context acts on the source, once.
        """
        keys = cache.source_keys.transpose(1, 2)
        scale = 1 / math.sqrt(self.config.width)
        scores = torch.baddbmm(cache.source_bias, hidden.to(keys.dtype), keys, alpha=scale)
        context = scores.softmax(-1) @ cache.source_values
        joined = self.norm((self.join_output(hidden) + context.to(hidden.dtype)).tanh())
        return self.embedding.logits(self.dropout(joined))


def reversal(mask: Tensor) -> Tensor:
    """Where each token goes when every row is read backwards and its padding stays in place.

    Args:
        mask: (B, S) bool, True where a row is no padding, which is at its end.

    Returns:
        (S, B) int64, the row of a (S * B, ...) tensor to be taken for each place; its own inverse.
    """
    rows, width = mask.shape
    places = torch.arange(width, device=mask.device)[:, None]
    length = mask.sum(1)
    swapped = torch.where(places < length, length - 1 - places, places)
    return swapped * rows + torch.arange(rows, device=mask.device)


def run_gru(cell: nn.GRUCell, inputs: Tensor, initial: Tensor) -> Tensor:
    """States of `cell` after every step, as of a one-layer `nn.GRU` with its weights.

    On CPUs `nn.GRU` is a loop through which autograd goes back operator by operator. Time for
    forward and backward at (35, 64, 192), one thread of an x86 machine: `nn.GRU` 1, this function
    0.94 in float32; 0.46 and 0.35 under bfloat16 autocast.

    Args:
        cell: with biases.
        inputs: (T, B, width).
        initial: (B, D).

    Returns:
        (T, B, D).
    """
    if inputs.device.type != "cpu":
        return fused_gru(cell, inputs, initial)
    outside, inside = cell.bias_hh.split([2 * cell.hidden_size, cell.hidden_size])
    bias = cell.bias_ih + F.pad(outside, (0, cell.hidden_size))
    projected = F.linear(inputs, cell.weight_ih, bias)
    initial, weight, inside = (
        tensor.to(projected.dtype) for tensor in (initial, cell.weight_hh, inside)
    )
    return Recurrence.apply(projected, initial, weight.t(), inside)


def fused_gru(cell: nn.GRUCell, inputs: Tensor, initial: Tensor) -> Tensor:
    """The same by the kernel of `nn.GRU`.

    The module itself is not used: `torch.compile` refuses models that hold one.
    """
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    block = torch.cat([weight.flatten() for weight in weights])  # cuDNN wants them in one piece
    parts = block.split([weight.numel() for weight in weights])
    views = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
    outputs, _ = torch.gru(
        inputs, initial[None], views, True, 1, 0.0, cell.training, False, False
    )  # with biases, one layer, no dropout, one direction, time first
    return outputs


class Recurrence(torch.autograd.Function):
    """The part of a gated recurrent unit that must go step by step, with its gradient.

    With x the projected input, h the state before and U, b the recurrent weights:
    r, z = sigmoid(x_rz + h U_rz), n = tanh(x_n + r (h U_n + b)), h' = n + z (h - n).
    The gradient with respect to what goes into the gates is that of h' times factors known from the
    forward pass. These are computed for all steps at once, and so is the gradient of U, a single
    product; the loop back through time has three operators a step.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, initial: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """States (T, B, D) from (T, B, 3D), (B, D), (D, 3D), (D), all of one dtype."""
        width = weight.shape[0]
        gates = projected.clone(memory_format=torch.contiguous_format)
        new = gates[..., 2 * width :].clone(memory_format=torch.contiguous_format)
        gates[..., 2 * width :] = bias
        states = torch.cat([initial[None], torch.empty_like(new)])
        steps = (gates, gates[..., : 2 * width], *gates.chunk(3, -1), new, states[:-1], states[1:])
        for gate, outer, reset, update, inner, candidate, before, after in _by_step(steps):
            gate.addmm_(before, weight)
            outer.sigmoid_()
            candidate.addcmul_(reset, inner).tanh_()
            torch.lerp(candidate, before, update, out=after)
        ctx.save_for_backward(gates, new, states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # the decorator's doing
        ctx: BackwardCFunction, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the four arguments."""
        gates, new, states, weight = ctx.saved_tensors  # pyright: ignore[reportAssignmentType]
        reset, update, inner = gates.chunk(3, -1)
        to_new = (1 - update).mul_(1 - new * new)
        factors = torch.empty_like(gates)
        of_reset, of_update, of_inner = factors.chunk(3, -1)
        torch.mul(to_new, reset, out=of_inner)
        torch.mul(of_inner * inner, 1 - reset, out=of_reset)
        torch.mul((states[:-1] - new).mul_(update), 1 - update, out=of_update)
        grads = torch.cat([torch.zeros_like(grad[:1]), grad])  # of every state, the initial too
        by_gate = factors.unflatten(-1, (3, -1))
        steps = (by_gate, factors, update, grads[1:], grads[:-1])
        for each, all_gates, kept, after, before in reversed(list(_by_step(steps))):
            each.mul_(after.unsqueeze(-2))
            before.addcmul_(after, kept).addmm_(all_gates, weight.t())
        grad_weight = states[:-1].flatten(0, 1).t() @ factors.flatten(0, 1)
        grad_bias = of_inner.sum((0, 1))
        torch.mul(grads[1:], to_new, out=of_inner)  # the input's candidate is not behind the reset
        return factors, grads[0], grad_weight, grad_bias


def _by_step(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Slices of each tensor along its first dimension, side by side."""
    return zip(*(tensor.unbind() for tensor in tensors), strict=True)


def _permute(hidden: Tensor, order: Tensor) -> Tensor:
    """(S, B, D) with its (S * B) rows taken in `order`."""
    return hidden.flatten(0, 1).index_select(0, order.flatten()).view_as(hidden)


def _cells(layers: nn.ModuleList) -> Iterable[nn.GRUCell]:
    """`layers` with the type that an `nn.ModuleList` does not know."""
    return cast("Iterable[nn.GRUCell]", layers)


def _layers(count: int, inputs: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.GRUCell(inputs, width) for _ in range(count))
