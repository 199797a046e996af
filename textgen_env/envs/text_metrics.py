"""Sentence BLEU and ROUGE-L of token ids, for many texts at once, on the device of the tokens.

Beside them, the tokens that a text and its reference have in common, in order.

Metrics do not wait for the device. They compare token ids where metrics of text compare words:
scores of text, which depend on how it is split into words, are left to evaluation.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.types import SpecialTokens, check_shape

MAX_ORDER = 4  # longest n-grams that BLEU counts


@dataclass(frozen=True)
class TokenTexts:
    """B texts as token ids.

    Attributes:
        tokens: (B, L) int64, arbitrary after `length`.
        length: (B,) int64, the number of tokens of each text.
    """

    tokens: Tensor
    length: Tensor

    def __post_init__(self) -> None:
        check_shape("tokens", self.tokens, (None, None))
        check_shape("length", self.length, (self.tokens.shape[0],))

    @classmethod
    def of(cls, tokens: Tensor, special: SpecialTokens) -> Self:
        """Return the texts of (B, L) int64 tokens, without their end token and the PAD after it."""
        within = (tokens != special.pad) & (tokens != special.end)
        return cls(tokens, within.sum(1))

    @property
    def mask(self) -> Tensor:
        """Mask of the tokens within the text, (B, L) bool."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return columns < self.length[:, None]

    def trimmed(self) -> Self:
        """Return the same texts, at least one, as wide as the longest; waits for the device."""
        return type(self)(self.tokens[:, : int(self.length.max())], self.length)


def token_bleu(hypotheses: TokenTexts, references: TokenTexts) -> Tensor:
    """Compute the smoothed BLEU of each text against one reference.

    The score is exp(min(0, 1 - r / c) + sum over n <= N of log(m_n / t_n) / N), and 0 where no
    token matches. c and r are the lengths of text and reference. t_n is the number of n-grams of
    the text. m_n is the number of those that the reference matches, each at most as often as it
    occurs there; the k-th m_n that is 0 counts as 2 ** -k. N is the largest n up to 4 with t_n > 0.

    Args:
        hypotheses: B texts.
        references: B texts, of any width.

    Returns:
        (B,) float32 in [0, 1]: sacrebleu's `sentence_bleu` / 100 with its default smoothing ("exp")
        and effective order.

    Source: Papineni et al. 2002; smoothing: Chen and Cherry 2014, method 3; Post 2018,
        arXiv:1804.08771.
    """
    matches = _clipped_matches(hypotheses, references)
    orders = torch.arange(MAX_ORDER, device=matches.device)
    totals = (hypotheses.length[:, None] - orders).clamp(min=0)
    counted = totals > 0
    missed = matches == 0
    log_matches = torch.where(
        missed, -math.log(2) * missed.cumsum(1), matches.clamp(min=1).float().log()
    )
    log_precisions = (log_matches - totals.clamp(min=1).log()).where(counted, 0.0)
    mean = log_precisions.sum(1) / counted.sum(1).clamp(min=1)
    brevity = (1 - references.length / hypotheses.length.clamp(min=1)).clamp(max=0.0)
    return (mean + brevity).exp().where(matches[:, 0] > 0, 0.0)


def _clipped_matches(hypotheses: TokenTexts, references: TokenTexts) -> Tensor:
    """Count the clipped n-gram matches of each text with its reference, (B, 4) int64.

    An n-gram matches if it has occurred less often before than the reference holds it. All pairs of
    positions are compared, in a few times B * L * (L + R) bytes: sorting n-grams is faster for many
    texts only, and few episodes end in a step.
    """
    mine = hypotheses.tokens
    pairs = mine[:, :, None] == references.tokens[:, None, :]
    pairs = pairs & hypotheses.mask[:, :, None] & references.mask[:, None, :]
    repeats = mine[:, :, None] == mine[:, None, :]
    same, earlier, matches = pairs, repeats.tril(-1), []
    for order in range(1, MAX_ORDER + 1):  # [:, i, j]: equal n-grams begin at i and j
        matches.append((earlier.sum(2) < same.sum(2)).sum(1))
        same = same[:, :-1, :-1] & pairs[:, order:, order:]
        earlier = earlier[:, :-1, :-1] & repeats[:, order:, order:]
    return torch.stack(matches, 1)


def token_rouge_l(hypotheses: TokenTexts, references: TokenTexts) -> Tensor:
    """Compute the F-measure of each text's longest common subsequence with one reference.

    With l its length, c and r the lengths of text and reference: precision l / c, recall l / r,
    and their harmonic mean 2 l / (c + r).

    Args:
        hypotheses: B texts.
        references: B texts, of any width.

    Returns:
        (B,) float32 in [0, 1]: the "rougeL" F-measure of the package rouge-score; 0 where either
        text is empty.

    Source: Lin 2004, section 3.1, with beta = 1.
    """
    table = _common_lengths(_equal_tokens(hypotheses, references))
    common = deque(table, maxlen=1).pop()[:, -1]  # of whole texts; no other row is kept
    return 2 * common / (hypotheses.length + references.length).clamp(min=1)


def common_tokens(texts: TokenTexts, references: TokenTexts) -> Tensor:
    """Mark the tokens of a longest common subsequence of each text and its reference.

    Of several longest ones it is the one that ends first in the text.

    Args:
        texts: B texts.
        references: B texts, of any width.

    Returns:
        (B, L) bool, True for the tokens of the text that are in it.
    """
    table = list(_common_lengths(_equal_tokens(texts, references)))
    column = torch.full_like(texts.length, table[0].shape[1] - 1)[:, None]
    marks = []
    for before, after in zip(table[-2::-1], table[:0:-1], strict=True):
        length = after.gather(1, column)
        matched = length > before.gather(1, column)
        earlier = (after < length).sum(1, keepdim=True) - 1  # columns before the matched token
        column = earlier.where(matched, column)
        marks.append(matched)
    return torch.cat(marks[::-1], 1)


def _equal_tokens(left: TokenTexts, right: TokenTexts) -> Tensor:
    """Return a (B, L, R) bool mask of the pairs of equal tokens within the texts."""
    pairs = left.tokens[:, :, None] == right.tokens[:, None, :]
    return pairs & left.mask[:, :, None] & right.mask[:, None, :]


def _common_lengths(pairs: Tensor) -> Iterator[Tensor]:
    """Yield the lengths of longest common subsequences, (B, R + 1) int64, for L + 1 prefixes.

    [:, j] of number i is that of the first i tokens on the left and the first j on the right.
    """
    rows, _, width = pairs.shape
    longest = torch.zeros(rows, width + 1, dtype=torch.int64, device=pairs.device)
    yield longest
    for equal in pairs.unbind(1):
        longer = torch.maximum(longest[:, 1:], longest[:, :-1] + equal)
        longest = F.pad(longer.cummax(1).values, (1, 0))
        yield longest
