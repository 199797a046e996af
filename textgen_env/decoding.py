"""Decoding (placeholder until the engine lands)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def next_action(logits, sampling, generator):
    return logits.argmax(-1)


@torch.inference_mode()
def greedy(model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
    cache = model.start(source, max_steps)
    previous = torch.full((len(source),), model.special.start)
    done = torch.zeros(len(source), dtype=torch.bool)
    out = []
    for step in range(max_steps):
        logits, cache = model.step(previous, cache)
        previous = logits.argmax(-1).where(~done, model.special.pad)
        out.append(previous)
        done = done | (previous == model.special.end)
        if step % 8 == 7 and bool(done.all()):
            break
    return torch.stack(out, 1)


def decode_all(model, source, max_steps, *, batch_size=64, beam_size=1):
    special = model.special
    order = (source != special.pad).sum(1).argsort(descending=True)
    out = source.new_full((len(source), max_steps), special.pad)
    for rows in order.split(batch_size):
        part = source[rows]
        part = part[:, : int((part != special.pad).sum(1).max())]
        written = greedy(model, part, max_steps)
        out[rows, : written.shape[1]] = written
    return out
