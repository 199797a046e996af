import itertools
import math
import random

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu as sacrebleu_of

from textgen_env.envs.text_metrics import TokenTexts, common_tokens, token_bleu, token_rouge_l
from textgen_env.types import ShapeError, SpecialTokens

FILLER = 3  # fills rows after their text; a word of the texts, so that reading it changes scores


def texts(rows, width):
    filled = [[*row, *[FILLER] * (width - len(row))] for row in rows]
    return TokenTexts(
        torch.tensor(filled).view(len(rows), width), torch.tensor([len(r) for r in rows])
    )


def random_rows(count, longest, words, seed):
    """Draw texts of up to `longest` out of `words` words; few words make many matches."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 3 + words, (n,), generator=generator).tolist() for n in lengths]


def corrupted(rows, words, seed):
    """Redraw a third of the words of each text, so that long n-grams match too."""
    generator = torch.Generator().manual_seed(seed)
    changed = []
    for row in rows:
        kept = torch.rand(len(row), generator=generator) > 0.3
        other = torch.randint(3, 3 + words, (len(row),), generator=generator)
        changed.append(torch.tensor(row).long().where(kept, other).tolist())
    return changed


def as_text(row):
    return " ".join(map(str, row))


def pairs(words, longest):
    """Return 600 pairs: half of them unrelated texts, half of them similar ones."""
    references = random_rows(300, longest, words, seed=words)
    unrelated = random_rows(300, longest, words, seed=words + 1)
    return unrelated + corrupted(references, words, seed=words), references + references


def test_texts_of_tokens_exclude_end_and_padding():
    tokens = torch.tensor([[5, 6, 2, 0], [5, 6, 7, 8], [2, 0, 0, 0], [0, 0, 0, 0]])
    assert TokenTexts.of(tokens, SpecialTokens(pad=0, start=1, end=2)).length.tolist() == [
        2,
        4,
        0,
        0,
    ]
    other = TokenTexts.of(torch.tensor([[5, 9, 8]]), SpecialTokens(pad=8, start=1, end=9))
    assert other.length.tolist() == [1]


@pytest.mark.parametrize(("words", "longest"), [(1, 6), (2, 9), (4, 14), (30, 30)])
def test_bleu_equals_sacrebleu(words, longest):
    written, references = pairs(words, longest)
    ours = token_bleu(texts(written, longest), texts(references, longest + 3))
    theirs = [
        sacrebleu_of(as_text(one), [as_text(other)], tokenize="none").score / 100
        for one, other in zip(written, references, strict=True)
    ]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("words", "longest"), [(1, 6), (2, 9), (4, 14), (30, 30)])
def test_rouge_l_equals_rouge_score(words, longest):
    written, references = pairs(words, longest)
    ours = token_rouge_l(texts(written, longest), texts(references, longest + 3))
    scorer = RougeScorer(["rougeL"])
    theirs = [
        scorer.score(as_text(other), as_text(one))["rougeL"].fmeasure
        for one, other in zip(written, references, strict=True)
    ]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-6, atol=1e-7)


BLEU_BY_HAND = {
    "the same": ([3, 4, 5, 6, 7], [3, 4, 5, 6, 7], 1.0),
    "the same, shorter than four": ([3, 4], [3, 4], 1.0),
    "nothing shared": ([3, 4], [5, 6], 0.0),
    "empty": ([], [5, 6], 0.0),
    "empty reference": ([5, 6], [], 0.0),
    "both empty": ([], [], 0.0),
    "half as long": ([3, 4], [3, 4, 5, 6], math.exp(-1)),
    "a repeat counts once": ([3, 3], [3], math.sqrt(1 / 2 * 1 / 2)),  # 1/2 of 1, bigram missed
    "two orders missed": ([3, 9, 4], [3, 8, 4], (2 / 3 * 1 / 4 * 1 / 4) ** (1 / 3)),
}


@pytest.mark.parametrize("case", BLEU_BY_HAND)
def test_bleu_by_hand(case):
    written, reference, expected = BLEU_BY_HAND[case]
    ours = token_bleu(texts([written], 6), texts([reference], 6))
    assert ours.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", [token_bleu, token_rouge_l])
@pytest.mark.parametrize(("width", "other"), [(0, 4), (4, 0), (1, 1), (2, 5)])
def test_texts_and_references_may_have_any_width(metric, width, other):
    scores = metric(texts([[3] * width] * 2, width), texts([[3] * other] * 2, other))
    assert scores.shape == (2,)
    assert (scores > 0).all() == (min(width, other) > 0)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("metric", [token_bleu, token_rouge_l])
def test_large_ids_are_told_apart(metric):
    """Compare two ids that are equal as 32-bit floats."""
    scores = metric(texts([[2**24], [2**24]], 1), texts([[2**24 + 1], [2**24]], 1))
    assert scores.tolist() == [0.0, 1.0]


def test_texts_check_their_shapes():
    with pytest.raises(ShapeError, match="length must have shape"):
        TokenTexts(torch.zeros(2, 3).long(), torch.zeros(3).long())


def subsequences(tokens):
    """Return the sets of places of all subsequences of `tokens`."""
    places = range(len(tokens))
    return (
        chosen
        for count in range(len(tokens) + 1)
        for chosen in itertools.combinations(places, count)
    )


def is_within(tokens, text):
    """Return whether `tokens` are a subsequence of `text`."""
    rest = iter(text)
    return all(token in rest for token in tokens)


def test_common_tokens_are_a_longest_common_subsequence():
    draw = random.Random(0)
    rows = [[draw.choices((3, 4, 5), k=draw.randint(1, 6)) for _ in range(2)] for _ in range(60)]
    texts, references = (
        TokenTexts(
            torch.tensor([row[side] + [3] * (6 - len(row[side])) for row in rows]),
            torch.tensor([len(row[side]) for row in rows]),
        )
        for side in (0, 1)
    )
    marked = common_tokens(texts, references)
    for marks, (text, reference) in zip(marked, rows, strict=True):
        common = [
            chosen
            for chosen in subsequences(text)
            if is_within([text[place] for place in chosen], reference)
        ]
        longest = max(map(len, common))
        found = tuple(marks.nonzero().squeeze(1).tolist())
        assert found in common
        assert len(found) == longest
        ends = [chosen[-1] for chosen in common if len(chosen) == longest and longest]
        assert not ends or found[-1] == min(ends)
