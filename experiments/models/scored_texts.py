"""Texts with their log-probabilities, and the lines that `textgen generate` writes of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from textgen_env.generation.beam_search import n_best
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks.lines import in_one_line
from textgen_env.tasks.task import encode_sources
from textgen_experiments.models.formats import check_stepped
from textgen_experiments.runs.precisions import load_to_act

ScoreFn = Callable[[Sequence[str]], "list[list[ScoredText]]"]
"""Function from sources to the best texts of each, the best one first."""
SCORE_DIGITS = 6


@dataclass(frozen=True)
class ScoredText:
    """Text and its probability by the model that wrote it.

    Attributes:
        text: the text.
        log_prob: sum over its tokens, nats, the end token's included if it has one.
        num_tokens: number of these tokens.
    """

    text: str
    log_prob: float
    num_tokens: int

    @property
    def mean_log_prob(self) -> float:
        """Mean of the log-probabilities of the tokens, nats."""
        return self.log_prob / self.num_tokens


def load_scorer(
    folder: Path, *, beam_size: int, count: int, max_tokens: int, precision: str
) -> ScoreFn:
    """Load a model whose texts come with scores: greedy ones, or the best of a beam.

    Args:
        folder: of the model.
        beam_size: K, at least 1; 1 is greedy decoding.
        count: most texts for a source, from 1 to K.
        max_tokens: longest text, in tokens.
        precision: a name in `PRECISIONS`.

    Raises:
        RunError: the model is in another program's format.
    """
    check_stepped(folder, "for scores")
    model, tokenizer = load_to_act(folder, precision), load_tokenizer(folder)
    end = tokenizer.special.end

    def score(sources: Sequence[str]) -> list[list[ScoredText]]:
        rows, means = n_best(
            model,
            encode_sources(sources, tokenizer),
            max_tokens,
            count=count,
            beam_size=beam_size,
        )
        lengths = [[text_length(row, end) for row in each] for each in rows.tolist()]
        return [
            [
                ScoredText(text, mean * length, length)
                for text, mean, length in zip(tokenizer.decode(each), scores, own, strict=True)
                if mean > float("-inf")  # fewer were found
            ]
            for each, scores, own in zip(rows.tolist(), means.tolist(), lengths, strict=True)
        ]

    return score


def text_length(row: Sequence[int], end: int) -> int:
    """Return the number of tokens of a text, its end token included; all where it has none."""
    return row.index(end) + 1 if end in row else len(row)


def line_with_scores(texts: Sequence[ScoredText]) -> str:
    """Return the mean, the sum and the first text, separated by tabs; empty without a text."""
    if not texts:
        return ""
    best = texts[0]
    scores = (f"{score:.{SCORE_DIGITS}f}" for score in (best.mean_log_prob, best.log_prob))
    return "\t".join([*scores, in_one_line(best.text)])


def json_line(source: str, texts: Sequence[ScoredText]) -> str:
    """Return a source and its texts as an object of JSON, in one line."""
    written = [
        {
            "text": each.text,
            "mean_log_prob": round(each.mean_log_prob, SCORE_DIGITS),
            "log_prob": round(each.log_prob, SCORE_DIGITS),
            "tokens": each.num_tokens,
        }
        for each in texts
    ]
    return json.dumps({"source": source, "texts": written}, ensure_ascii=False)
