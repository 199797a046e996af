"""Text and pictures of episodes, for the environments' `render`; it waits for the device."""

import textwrap
import warnings

import numpy as np
import torch

from textgen_env.dynamics import Observation
from textgen_env.experts.expert import Expert, NoExpert
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer
from textgen_env.types import Examples

PICTURE_INCHES = (6.4, 2.4)
PICTURE_DPI = 100
LINE_WIDTH = 72  # characters of a fixed width that a line of a picture has room for
PICTURE_LINES = 12


def as_picture(text: str) -> np.ndarray:
    """Return black `text` on white, (240, 640, 3) uint8, whatever its length: the last lines of it.

    Characters that the font lacks are boxes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, rarely needed
    from matplotlib.figure import Figure

    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, LINE_WIDTH) or [""]]
    figure = Figure(PICTURE_INCHES, PICTURE_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(
        0.02,
        0.95,
        "\n".join(lines[-PICTURE_LINES:]),
        family="monospace",
        va="top",
        parse_math=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


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
