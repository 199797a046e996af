"""Recurrent encoder-decoder with attention, whose step costs the same at every position.

Bidirectional gated recurrent units (GRUs) encode the source and unidirectional ones decode the
target. The decoder's output is combined with a context vector from scaled dot-product attention
over the source. There is no input feeding, so a finished target is read in one pass. Embeddings are
tied and logits have unit scale at the start, as in `transformer.py`. Dropout acts on the
embeddings, after each layer and before the logits. Inputs of recurrent layers are time-major.

Source: GRUs, Cho et al. 2014, arXiv:1406.1078; attention, Luong et al. 2015, section 3,
arXiv:1508.04025; dropout, Lin et al. 2020, arXiv:2009.07253.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from textgen_env.bounds import check_at_least, check_finite
from textgen_env.models.config import ModelConfig, check_dropout
from textgen_env.models.layers import Dropout, TiedEmbedding, at_least_float32, check_source
from textgen_env.models.recurrent_cache import RecurrentCache
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Size of a recurrent model.

    Attributes:
        vocab_size: number of tokens, V.
        width: width D of embeddings and decoder, and of both encoder directions together; even.
        num_encoder_layers: number of encoder layers, each in both directions; at least 1.
        num_decoder_layers: number of decoder layers; at least 1.
        dropout: probability of dropout, in [0, 0.99].
    """

    vocab_size: int = 4000
    width: int = 192
    num_encoder_layers: int = 2
    num_decoder_layers: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(self, vocab_size=1, num_encoder_layers=1, num_decoder_layers=1)
        check_dropout(self)
        check_finite(self, "width")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width must be even and at least 2, got {self.width}")

    def build(self, special: SpecialTokens | None = None) -> "Recurrent":
        """Return a `Recurrent` of this size."""
        return Recurrent(self, special)


class Recurrent(nn.Module):
    """Recurrent encoder-decoder as a `SequenceModel`; the module docstring has its details."""

    def __init__(self, config: RecurrentConfig, special: SpecialTokens | None = None) -> None:
        super().__init__()
        width, half = config.width, config.width // 2
        self.config = config
        self.special = special or SpecialTokens()
        self.embedding = TiedEmbedding(config.vocab_size, width)
        self.forward_encoder = _gru_stack(config.num_encoder_layers, width, half)
        self.backward_encoder = _gru_stack(config.num_encoder_layers, width, half)
        self.bridge = nn.Linear(width, config.num_decoder_layers * width)
        self.decoder = _gru_stack(config.num_decoder_layers, width, width)
        self.join_output = nn.Linear(width, width)
        self.join_context = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)
        if not self.embedding.weight.is_meta:  # otherwise weights from a file follow
            nn.init.normal_(self.embedding.weight, std=width**-0.5)

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, V."""
        return self.config.vocab_size

    @property
    def width(self) -> int:
        """D, the width of the hidden states and of the embeddings."""
        return self.config.width

    def start(self, source: Tensor, max_steps: int) -> RecurrentCache:
        """Encode the source; the cache has a fixed size, whatever `max_steps` is."""
        del max_steps
        cache = self._encode(source)
        if source.device.type != "cpu":
            return cache
        dtype = at_least_float32(cache.source_keys.dtype)
        return replace(
            cache,
            source_keys=cache.source_keys.to(dtype),
            source_values=cache.source_values.to(dtype),
            source_bias=cache.source_bias.to(dtype),
        )

    def step(self, previous: Tensor, cache: RecurrentCache) -> tuple[Tensor, RecurrentCache]:
        """Return the logits (B, V) of the next token and the cache after this step."""
        hidden, states = self._embed(previous), []
        for cell, state in zip(self.decoder, cache.states.unbind(), strict=True):
            states.append(cell(hidden, state))
            hidden = self.dropout(states[-1])
        logits = self.project(self._join(hidden[:, None], cache)).squeeze(1)
        return logits, replace(cache, states=torch.stack(states))

    def step_block(
        self, tokens: Tensor, cache: RecurrentCache
    ) -> tuple[Tensor, list[RecurrentCache]]:
        """Return the logits after each of K tokens, (B, K, V), and the cache after each of them."""
        hidden, states = self._embed(tokens), []
        for cell, state in zip(self.decoder, cache.states.unbind(), strict=True):
            after = []
            for inputs in hidden.unbind(1):
                state = cell(inputs, state)
                after.append(state)
            states.append(torch.stack(after))
            hidden = self.dropout(torch.stack(after, 1))
        caches = [replace(cache, states=each) for each in torch.stack(states, 1).unbind()]
        return self.project(self._join(hidden, cache)), caches

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action."""
        return self.project(self.hidden(source, actions))

    def hidden(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the last hidden states (B, T, D), with the source's context in them."""
        cache = self._encode(source)
        previous = F.pad(actions, (1, 0), value=self.special.start)[:, :-1]
        hidden = self._embed(previous.t())
        for cell, state in zip(_gru_cells(self.decoder), cache.states.unbind(), strict=True):
            hidden = self.dropout(run_gru(cell, hidden, state))
        return self._join(hidden.transpose(0, 1).contiguous(), cache)

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of last hidden states, (..., D)."""
        return self.embedding.logits(hidden)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings (..., D) of tokens, (...) int64."""
        return self.embedding(tokens)

    def _encode(self, source: Tensor) -> RecurrentCache:
        check_source(source)
        mask = source != self.special.pad
        order = reversal(mask)
        hidden = self._embed(source.t())
        initial = hidden.new_zeros(len(source), self.config.width // 2)
        ahead = back = hidden
        for forward, backward in zip(
            _gru_cells(self.forward_encoder), _gru_cells(self.backward_encoder), strict=True
        ):
            ahead = run_gru(forward, hidden, initial)
            back = _permute_tokens(
                run_gru(backward, _permute_tokens(hidden, order), initial), order
            )
            hidden = self.dropout(torch.cat([ahead, back], dim=-1))
        last = ahead.flatten(0, 1).index_select(0, order[0])  # at each row's last token
        return self.first_cache(hidden, torch.cat([last, back[0]], dim=-1), mask)

    def first_cache(self, hidden: Tensor, final: Tensor, mask: Tensor) -> RecurrentCache:
        """Return the cache before the first step, of the encoder's outputs.

        Args:
            hidden: (S, B, D), those at all tokens, of both directions.
            final: (B, D), those of each direction's last step, of both directions.
            mask: (B, S) bool, True at tokens.
        """
        states = self.bridge(final).tanh().unflatten(-1, (-1, self.config.width))
        keys = hidden.transpose(0, 1).contiguous()  # strided products are slow in bfloat16
        values = self.join_context(keys)
        bias = torch.zeros_like(mask, dtype=values.dtype).masked_fill(~mask, float("-inf"))
        return RecurrentCache(torch.stack(states.unbind(1)), keys, values, bias[:, None])

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens) * math.sqrt(self.config.width))

    def _join(self, hidden: Tensor, cache: RecurrentCache) -> Tensor:
        """Return the last hidden states (B, T, D) of the decoder's outputs, (B, T, D).

        Output and context have a projection each. The context's acts on the source, once.
        """
        keys = cache.source_keys.transpose(1, 2)
        scale = 1 / math.sqrt(self.config.width)
        scores = torch.baddbmm(cache.source_bias, hidden.to(keys.dtype), keys, alpha=scale)
        context = scores.softmax(-1) @ cache.source_values
        joined = self.norm((self.join_output(hidden) + context.to(hidden.dtype)).tanh())
        return self.dropout(joined)


def reversal(mask: Tensor) -> Tensor:
    """Return the permutation that reverses the tokens of each row and keeps its padding in place.

    Args:
        mask: (B, S) bool, True at tokens; padding is at the end of a row.

    Returns:
        (S, B) int64, indices into a flattened (S * B, ...) tensor; the permutation is its own
        inverse.
    """
    rows, width = mask.shape
    positions = torch.arange(width, device=mask.device)[:, None]
    length = mask.sum(1)
    reversed_positions = torch.where(positions < length, length - 1 - positions, positions)
    return reversed_positions * rows + torch.arange(rows, device=mask.device)


def run_gru(cell: nn.GRUCell, inputs: Tensor, initial: Tensor) -> Tensor:
    """Return the states of a gated recurrent unit after every step, as a one-layer `nn.GRU` does.

    On CPUs autograd differentiates `nn.GRU` operator by operator. `Recurrence` has a faster
    backward pass and is used there instead.

    Args:
        cell: a cell with biases.
        inputs: (T, B, width).
        initial: (B, D), the state before the first step.

    Returns:
        (T, B, D), the states after each step.
    """
    if inputs.device.type != "cpu":
        return fused_gru(cell, inputs, initial)
    # The candidate's recurrent bias is multiplied by the reset gate, so only the gates' is added.
    gate_bias, candidate_bias = cell.bias_hh.split([2 * cell.hidden_size, cell.hidden_size])
    bias = cell.bias_ih + F.pad(gate_bias, (0, cell.hidden_size))
    projected = F.linear(inputs, cell.weight_ih, bias)
    initial, weight, candidate_bias = (
        tensor.to(projected.dtype) for tensor in (initial, cell.weight_hh, candidate_bias)
    )
    return Recurrence.apply(projected, initial, weight.t(), candidate_bias)


def fused_gru(cell: nn.GRUCell, inputs: Tensor, initial: Tensor) -> Tensor:
    """Compute what `run_gru` does by the fused kernel of `nn.GRU`.

    The module itself is not used, because `torch.compile` refuses models that contain one.
    """
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    block = torch.cat([weight.flatten() for weight in weights])  # cuDNN needs one block of memory
    parts = block.split([weight.numel() for weight in weights])
    views = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
    outputs, _ = torch.gru(
        inputs, initial[None], views, True, 1, 0.0, cell.training, False, False
    )  # with biases, one layer, no dropout, one direction, time first
    return outputs


class Recurrence(torch.autograd.Function):
    """The sequential part of a gated recurrent unit as a differentiable function.

    With x the projected input, h the previous state and U, b the recurrent weights:
    r, z = sigmoid(x_rz + h U_rz), n = tanh(x_n + r (h U_n + b)), h' = n + z (h - n).

    The gradient of the gates' inputs is that of h' times factors known from the forward pass. The
    factors are computed for all steps at once, and so is the gradient of U. The loop backward
    through time is left with three operators per step.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, initial: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Return the states after every step, (T, B, D); all arguments have the same dtype.

        Args:
            ctx: autograd's context.
            projected: (T, B, 3D), x for reset gate, update gate and candidate.
            initial: (B, D), h before the first step.
            weight: (D, 3D), U.
            bias: (D,), b.
        """
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
        """Return the gradients of the four arguments."""
        gates, new, states, weight = ctx.saved_tensors  # pyright: ignore[reportAssignmentType]
        reset, update, inner = gates.chunk(3, -1)
        new_factor = (1 - update).mul_(1 - new * new)
        factors = torch.empty_like(gates)
        reset_factor, update_factor, inner_factor = factors.chunk(3, -1)
        torch.mul(new_factor, reset, out=inner_factor)
        torch.mul(inner_factor * inner, 1 - reset, out=reset_factor)
        torch.mul((states[:-1] - new).mul_(update), 1 - update, out=update_factor)
        grads = torch.cat([torch.zeros_like(grad[:1]), grad])  # of all states, also the initial one
        by_gate = factors.unflatten(-1, (3, -1))
        steps = (by_gate, factors, update, grads[1:], grads[:-1])
        for gate, all_gates, kept, after, before in reversed(list(_by_step(steps))):
            gate.mul_(after.unsqueeze(-2))
            before.addcmul_(after, kept).addmm_(all_gates, weight.t())
        grad_weight = states[:-1].flatten(0, 1).t() @ factors.flatten(0, 1)
        grad_bias = inner_factor.sum((0, 1))
        torch.mul(grads[1:], new_factor, out=inner_factor)  # x_n is not multiplied by the reset
        return factors, grads[0], grad_weight, grad_bias


def _by_step(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over the first dimension of all tensors at once."""
    return zip(*(tensor.unbind() for tensor in tensors), strict=True)


def _permute_tokens(hidden: Tensor, order: Tensor) -> Tensor:
    """Return `hidden`, (S, B, D), with its S * B tokens permuted by `order`, (S, B)."""
    return hidden.flatten(0, 1).index_select(0, order.flatten()).view_as(hidden)


def _gru_cells(layers: nn.ModuleList) -> Iterable[nn.GRUCell]:
    """Return `layers` with their type, which `nn.ModuleList` does not keep."""
    return cast("Iterable[nn.GRUCell]", layers)


def _gru_stack(count: int, inputs: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.GRUCell(inputs, width) for _ in range(count))
