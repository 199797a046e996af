"""Quality of generated texts: BLEU and chrF by sacreBLEU with their signatures, ROUGE, exact match.

All scores are in [0, 100]. The tokenized lower-cased BLEU of older papers has a name of its own: it
is higher than sacreBLEU on the same text and must not be compared with it. How BLEU splits texts
follows the language of the references, and stands in its signature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from statistics import fmean

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result

from textgen_agents.evaluation.bleu_metric import bleu_metric
from textgen_env.generation.beam_search import decoder_of
from textgen_env.generation.decoding import decode_all
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.tasks.languages import count_words, letter_words
from textgen_env.tasks.task import Pair, Task, TextTask, encode_sources, references_of
from textgen_env.tokenizers.subword import TextTokenizer

LENGTH_LIMITS = (10, 15, 20, 25)
"""Largest number of words in each group of pairs of similar length but the last."""
TOKENIZED_LOWERCASE = {"lowercase": True, "smooth_method": "none"}
"""Options of BLEU that agree with nltk's `corpus_bleu` on lower-cased tokens (Lin et al. 2020).

Tokens are split by sacreBLEU's tokenizer: that of nltk needs data that its package lacks.
"""
ROUGE_SIGNATURE = (
    f"F|case:lc|stem:no|words:unicode|unspaced:char|rouge-score:{version('rouge_score')}"
)


@dataclass(frozen=True)
class Quality:
    """Corpus scores of one set of hypotheses, in [0, 100].

    Attributes:
        bleu: sacreBLEU.
        chrf: chrF2.
        rouge1: ROUGE-1, F-measure, mean over the texts.
        rouge2: ROUGE-2, F-measure, mean over the texts.
        rougeL: ROUGE-L, F-measure, mean over the texts.
        exact_match: percentage of texts that equal their references.
        tokenized_lowercase_bleu: BLEU as reported before sacreBLEU; must not be compared with
            `bleu`.
        signature: sacreBLEU's signature of `bleu`.
        chrf_signature: sacreBLEU's signature of `chrf`.
        rouge_signature: options and version of ROUGE.
        tokenized_lowercase_signature: sacreBLEU's signature of `tokenized_lowercase_bleu`.
    """

    bleu: float
    chrf: float
    rouge1: float
    rouge2: float
    rougeL: float
    exact_match: float
    tokenized_lowercase_bleu: float
    signature: str
    chrf_signature: str
    rouge_signature: str
    tokenized_lowercase_signature: str


@dataclass(frozen=True)
class LengthGroup:
    """Pairs of similar length and the sacreBLEU of their texts.

    Attributes:
        up_to: largest number of words; None for the group of the longest.
        pairs: number of pairs.
        bleu: in [0, 100]; None where there is no pair.
    """

    up_to: int | None
    pairs: int
    bleu: float | None


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrap estimates for the BLEU of one system.

    Attributes:
        confidence: half the width of the 95 % confidence interval, in BLEU.
        p_value: of the difference from the baseline, in (0, 1]; None for the baseline itself, or
            where there is no baseline.
    """

    confidence: float
    p_value: float | None


def score(
    hypotheses: Sequence[str], references: Sequence[str], language: str | None = None
) -> Quality:
    """Score hypotheses against one reference each.

    Args:
        hypotheses: the generated texts.
        references: one for each hypothesis.
        language: code of their language; None for one with spaces between words.

    Raises:
        ValueError: no text, or another number of hypotheses than of references.

    Source: Post 2018, arXiv:1804.08771; Popović 2015, chrF; Lin 2004, ROUGE.
    """
    _check_pairs(hypotheses, references)
    metrics = _metrics(tuple(references), language)
    texts = list(hypotheses)
    bleu, chrf, lowercase_bleu = (each.corpus_score(texts, None).score for each in metrics)
    signature, chrf_signature, lowercase_signature = (str(each.get_signature()) for each in metrics)
    rouge1, rouge2, rouge_l = rouge(hypotheses, references)
    return Quality(
        bleu=bleu,
        chrf=chrf,
        rouge1=rouge1,
        rouge2=rouge2,
        rougeL=rouge_l,
        exact_match=exact_match_rate(hypotheses, references),
        tokenized_lowercase_bleu=lowercase_bleu,
        signature=signature,
        chrf_signature=chrf_signature,
        rouge_signature=ROUGE_SIGNATURE,
        tokenized_lowercase_signature=lowercase_signature,
    )


@lru_cache(maxsize=2)
def _metrics(references: tuple[str, ...], language: str | None) -> tuple[BLEU, CHRF, BLEU]:
    """Return the metrics of `score`, which have counted the references.

    They are kept, since several systems are scored with the same references.
    """
    counted = {"references": [list(references)]}
    return (
        bleu_metric(language, **counted),
        CHRF(references=counted["references"]),
        bleu_metric(language, **TOKENIZED_LOWERCASE, **counted),
    )


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], language: str | None = None
) -> float:
    """Compute the corpus sacreBLEU, in [0, 100].

    Args:
        hypotheses: the generated texts.
        references: one for each hypothesis.
        language: code of their language; None for one with spaces between words.

    Raises:
        ValueError: no text, or another number of hypotheses than of references.
    """
    _check_pairs(hypotheses, references)
    return _corpus_score(bleu_metric(language), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Compute chrF2 of sacreBLEU, in [0, 100].

    Raises:
        ValueError: no text, or another number of hypotheses than of references.
    """
    _check_pairs(hypotheses, references)
    return _corpus_score(CHRF(), hypotheses, references)


def exact_match_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Compute the percentage of hypotheses that equal their references.

    Raises:
        ValueError: no text, or another number of hypotheses than of references.
    """
    _check_pairs(hypotheses, references)
    return 100 * fmean(map(str.__eq__, hypotheses, references))


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, float, float]:
    """Compute the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, means over the texts, in [0, 100].

    Words are lower-cased, not stemmed, and made of letters of any script; in scripts without spaces
    each character is a word. On ASCII texts the result is that of the package's defaults, which
    elsewhere split words at every non-ASCII letter.

    Raises:
        ValueError: no text, or another number of hypotheses than of references.

    Source: Lin 2004, "ROUGE: A package for automatic evaluation of summaries".
    """
    from rouge_score.rouge_scorer import RougeScorer  # slow to import

    _check_pairs(hypotheses, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, tokenizer=_WordTokenizer())
    scores = [scorer.score(*texts) for texts in zip(references, hypotheses, strict=True)]
    rouge1, rouge2, rouge_l = (
        100 * fmean(each[kind].fmeasure for each in scores) for kind in kinds
    )
    return rouge1, rouge2, rouge_l


class _WordTokenizer:
    """Tokenizer for `rouge_score` that splits a text into lower-cased words of any script."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text`, lower-cased."""
        return letter_words(text.lower())


def bleu_by_length(
    hypotheses: Sequence[str],
    references: Sequence[str],
    lengths_of: Sequence[str],
    language: str | None = None,
) -> list[LengthGroup]:
    """Compute sacreBLEU for each group of pairs of similar length.

    Args:
        hypotheses: the generated texts.
        references: one for each hypothesis.
        lengths_of: the texts whose words are counted: the references or the sources.
        language: code of the references' language, for BLEU.

    Raises:
        ValueError: no text, or not as many of each.
    """
    _check_pairs(hypotheses, references)
    if len(lengths_of) != len(references):
        raise ValueError(
            f"lengths_of must be as many as references ({len(references)}), got {len(lengths_of)}"
        )
    groups: list[list[int]] = [[] for _ in (*LENGTH_LIMITS, None)]
    for index, text in enumerate(lengths_of):
        groups[sum(count_words(text) > limit for limit in LENGTH_LIMITS)].append(index)
    return [
        LengthGroup(
            limit,
            len(group),
            bleu([hypotheses[i] for i in group], [references[i] for i in group], language)
            if group
            else None,
        )
        for limit, group in zip((*LENGTH_LIMITS, None), groups, strict=True)
    ]


def bootstrap(
    systems: Sequence[Sequence[str]],
    references: Sequence[str],
    baseline: int | None = None,
    language: str | None = None,
) -> list[Bootstrap]:
    """Estimate the confidence interval of each system's BLEU and its difference from a baseline.

    The samples, 1,000 of them, and their seed are sacreBLEU's. The p-value is the probability of a
    difference at least as large if the systems were the same. For texts that equal the baseline's
    it is 1, where sacreBLEU gives 0.001 because it counts larger differences alone.

    Args:
        systems: the texts of each system.
        references: one for each text.
        baseline: index of the system that the others are compared with; None for no comparison.
        language: code of the texts' language.

    Raises:
        ValueError: no system, no text, a system with another number of texts than of references, or
            a baseline that is none of the systems.

    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation".
    """
    if not systems:
        raise ValueError("systems must hold at least one system, got 0")
    for hypotheses in systems:
        _check_pairs(hypotheses, references)
    if baseline is not None and baseline not in range(len(systems)):
        raise ValueError(f"baseline must be from 0 to {len(systems) - 1}, or None, got {baseline}")
    order = sorted(range(len(systems)), key=lambda index: index != baseline)  # the baseline first
    named: list[tuple[str, Sequence[str]]] = [(str(index), systems[index]) for index in order]
    metric = bleu_metric(language)
    _, scores = PairedTest(named, {"BLEU": metric}, [list(references)], test_type="bs")()
    estimates = {}
    for index, result in zip(order, scores["BLEU"], strict=True):
        assert isinstance(result, Result), "only the column of names holds text"
        assert result.ci is not None, "PairedTest estimates an interval for each system"
        p_value = result.p_value
        if baseline is None:
            p_value = None
        elif index != baseline and list(systems[index]) == list(systems[baseline]):
            p_value = 1.0
        estimates[index] = Bootstrap(float(result.ci), p_value)
    return [estimates[index] for index in range(len(systems))]


def paired_bootstrap(
    baseline: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    language: str | None = None,
) -> float:
    """Return the p-value of the difference in BLEU of two systems, in (0, 1]."""
    p_value = bootstrap([baseline, hypotheses], references, 0, language)[1].p_value
    assert p_value is not None, "the second system is compared with the first"
    return p_value


def _check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raise `ValueError` unless there is one reference for each hypothesis, and at least one."""
    if len(hypotheses) != len(references):
        raise ValueError(
            f"hypotheses must be as many as references ({len(references)}), got {len(hypotheses)}"
        )
    if not references:
        raise ValueError("references must hold at least one text, got 0")


def _corpus_score(
    metric: BLEU | CHRF, hypotheses: Sequence[str], references: Sequence[str]
) -> float:
    """Compute the corpus score of `metric` with one reference for each hypothesis."""
    return metric.corpus_score(list(hypotheses), [list(references)]).score


def translate_texts(
    model: SequenceModel,
    tokenizer: TextTokenizer,
    sources: Sequence[str],
    *,
    max_steps: int,
    beam_size: int = 1,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Generate a text with `model` for each source, and return the texts in the same order.

    Args:
        model: in evaluation mode.
        tokenizer: of sources and targets.
        sources: the texts to read.
        max_steps: largest number of tokens in a generated text.
        beam_size: number of beams; 1 decodes greedily.
        batch_size: number of sources decoded together.
        device: device of the model.
    """
    written = decode_all(
        model,
        encode_sources(sources, tokenizer).to(device),
        max_steps,
        batch_size=batch_size,
        decoder=decoder_of(beam_size),
    )
    return tokenizer.decode(written.tolist())


def translate(
    model: SequenceModel,
    task: Task,
    sources: Sequence[str],
    *,
    beam_size: int = 1,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Call `translate_texts` with the task's tokenizer and length limit."""
    return translate_texts(
        model,
        task.tokenizer,
        sources,
        max_steps=task.max_target_length,
        beam_size=beam_size,
        batch_size=batch_size,
        device=device,
    )


def quality_on(
    model: SequenceModel,
    task: TextTask,
    pairs: Sequence[Pair],
    *,
    beam_size: int = 1,
    batch_size: int = 64,
) -> Quality:
    """Score the texts that `model` generates for the sources of `pairs`."""
    sources = [pair.source for pair in pairs]
    hypotheses = translate(model, task, sources, beam_size=beam_size, batch_size=batch_size)
    return score(hypotheses, references_of(pairs), task.target_language)
