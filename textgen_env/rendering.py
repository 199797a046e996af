"""Episodes as text to read: what the environments' `render` gives. It waits for the device."""

import torch
from torch import Tensor

from textgen_env.dynamics import Observation
from textgen_env.expert import Expert, NoExpert
from textgen_env.tokenizer import SPECIAL_PIECES, Tokenizer
from textgen_env.types import Trajectories, Writer, trimmed


def as_text(
    shown: Observation, references: Tensor, tokenizer: Tokenizer, expert: Expert
) -> tuple[str, ...]:
    """Each slot's source and text so far and, if it can be asked, what the expert would have done.

    The expert is asked about the last token of each slot that has written one, and counts that.

    Args:
        shown: B episodes.
        references: (B, R) int64, the data set's targets, for experts that look at them.
        tokenizer: of both sides.
        expert: is asked unless it is a `NoExpert`.

    Returns:
        B strings of two or three lines, without a line break at the end.
    """
    sources = tokenizer.decode(shown["source"].tolist())
    texts = tokenizer.decode(shown["prefix"].tolist())
    lines = [
        [f"source: {source}", f"text:   {text}"]
        for source, text in zip(sources, texts, strict=True)
    ]
    if not isinstance(expert, NoExpert) and bool(shown["length"].any()):
        written, choice = _last_tokens(shown, references, expert)
        for row in shown["length"].nonzero().flatten().tolist():
            policys, experts = (_piece(int(ids[row]), tokenizer) for ids in (written, choice))
            lines[row].append(f"last:   {policys} (the expert: {experts})")
    return tuple("\n".join(row) for row in lines)


def _last_tokens(shown: Observation, references: Tensor, expert: Expert) -> tuple[Tensor, Tensor]:
    """(B,) the token written last, and (B,) what the expert would have written there."""
    length = shown["length"]
    actions = shown["prefix"][:, : int(length.max())]
    last = (length - 1).clamp(min=0)[:, None]
    position = torch.arange(actions.shape[1], device=length.device)
    trajectories = Trajectories(
        source=trimmed(shown["source"], expert.special),
        actions=actions,
        writer=torch.full_like(actions, Writer.STUDENT),
        mask=position == length[:, None] - 1,
        reference=references,
    )
    best = expert.best_actions(trajectories)
    return actions.gather(1, last)[:, 0], best.gather(1, last)[:, 0]


def _piece(token: int, tokenizer: Tokenizer) -> str:
    """`token` as text; special tokens by their names."""
    names = dict(zip(tokenizer.special, SPECIAL_PIECES, strict=True))
    return names[token] if token in names else tokenizer.decode([[token]])[0]
