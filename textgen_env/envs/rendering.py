"""Text of episodes for people to read, for the environments' `render`; it waits for the device."""

import torch

from textgen_env.dynamics import Observation
from textgen_env.experts.expert import Expert, NoExpert
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer
from textgen_env.types import Examples


def as_text(
    shown: Observation, examples: Examples, tokenizer: TextTokenizer, expert: Expert
) -> tuple[str, ...]:
    """Return each slot's source and text so far, and the expert's choice of its last token.

    The expert is queried about the last token of each slot that has written one, and counts it.

    Args:
        shown: the observation of B episodes.
        examples: the examples of the B slots, with the expert's view of their sources.
        tokenizer: of both sides.
        expert: queried unless it is a `NoExpert`.

    Returns:
        B strings of two or three lines, without a line break at the end.
    """
    sources = tokenizer.decode(shown["source"].tolist())
    texts = tokenizer.decode(shown["prefix"].tolist())
    lines = [
        [f"source: {source}", f"text:   {text}"]
        for source, text in zip(sources, texts, strict=True)
    ]
    rows = shown["length"].nonzero().squeeze(1)
    if not isinstance(expert, NoExpert) and len(rows):
        last = shown["length"][rows] - 1
        selected = examples.select(rows).trimmed(expert.special)
        prefix = shown["prefix"][rows, : int(last.max()) + 1]
        best = expert.best_actions_at(selected.expert_view, prefix, last, selected.reference)
        written = prefix.gather(1, last[:, None]).squeeze(1)
        for row, *tokens in torch.stack([rows, written, best], 1).tolist():
            last_piece, best_piece = (_piece(token, tokenizer) for token in tokens)
            lines[row].append(f"last:   {last_piece} (the expert: {best_piece})")
    return tuple("\n".join(row) for row in lines)


def _piece(token: int, tokenizer: TextTokenizer) -> str:
    """Return `token` as text, a special token by its name."""
    named = zip(tokenizer.special, SPECIAL_PIECES, strict=True)
    names = dict(reversed([*named]))  # a start token that is padding too is named as padding
    return names[token] if token in names else tokenizer.decode([[token]])[0]
