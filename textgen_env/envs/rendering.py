"""Episodes as text to read: what the environments' `render` gives. It waits for the device."""

import torch

from textgen_env.dynamics import Observation
from textgen_env.experts.expert import Expert, NoExpert
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer
from textgen_env.types import Examples


def as_text(
    shown: Observation, examples: Examples, tokenizer: TextTokenizer, expert: Expert
) -> tuple[str, ...]:
    """Each slot's source and text so far and, if it can be asked, what the expert would have done.

    The expert is asked about the last token of each slot that has written one, and counts that.

    Args:
        shown: B episodes.
        examples: what the B slots are at, as the expert reads it.
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
    rows = shown["length"].nonzero().squeeze(1)
    if not isinstance(expert, NoExpert) and len(rows):
        last = shown["length"][rows] - 1
        asked = examples.select(rows).trimmed(expert.special)
        prefix = shown["prefix"][rows, : int(last.max()) + 1]
        choice = expert.best_actions_at(asked.expert_view, prefix, last, asked.reference)
        written = prefix.gather(1, last[:, None]).squeeze(1)
        for row, *tokens in torch.stack([rows, written, choice], 1).tolist():
            policys, best = (_piece(token, tokenizer) for token in tokens)
            lines[row].append(f"last:   {policys} (the expert: {best})")
    return tuple("\n".join(row) for row in lines)


def _piece(token: int, tokenizer: TextTokenizer) -> str:
    """`token` as text; special tokens by their names."""
    named = zip(tokenizer.special, SPECIAL_PIECES, strict=True)
    names = dict(reversed([*named]))  # a start that is padding too goes by the latter's name
    return names[token] if token in names else tokenizer.decode([[token]])[0]
