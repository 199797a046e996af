"""Quality of what a model writes, by sacreBLEU and its chrF, with their signatures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result

from textgen_env.beam_search import decoder_of
from textgen_env.decoding import decode_all
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.tasks.task import Pair, Task, encode_sources
from textgen_env.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Quality:
    """Corpus scores of one set of hypotheses.

    Attributes:
        bleu: sacreBLEU, in [0, 100].
        chrf: chrF2, in [0, 100].
        signature: sacreBLEU's signature of the BLEU score.
    """

    bleu: float
    chrf: float
    signature: str


def score(hypotheses: Sequence[str], references: Sequence[str]) -> Quality:
    """Score hypotheses against one reference each.

    Raises:
        ValueError: another number of hypotheses than of references.

    Source: Post 2018, arXiv:1804.08771; Popović 2015, chrF.
    """
    if len(hypotheses) != len(references):
        raise ValueError(
            f"hypotheses must be as many as references ({len(references)}), got {len(hypotheses)}"
        )
    metric = BLEU()
    bleu = metric.corpus_score(list(hypotheses), [list(references)])
    chrf = CHRF().corpus_score(list(hypotheses), [list(references)])
    return Quality(bleu.score, chrf.score, str(metric.get_signature()))


def paired_bootstrap(
    baseline: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
) -> float:
    """p-value of the difference in BLEU of two systems on the same sentences, in (0, 1].

    sacreBLEU's own, with its 1,000 samples and its seed: the probability of a difference at least
    as large if the systems were the same.

    Args:
        baseline: texts of the one.
        hypotheses: texts of the other.
        references: one for each.

    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation".
    """
    systems: list[tuple[str, Sequence[str]]] = [("baseline", baseline), ("system", hypotheses)]
    test = PairedTest(systems, {"BLEU": BLEU()}, [list(references)], test_type="bs")
    _, scores = test()
    result = scores["BLEU"][1]
    assert isinstance(result, Result), "sacreBLEU gives text for the column of names alone"
    assert result.p_value is not None, "the second system is compared with the first"
    return result.p_value


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
    """What `model` writes for each source, in the same order.

    Args:
        model: in evaluation mode.
        tokenizer: of both sides.
        sources: texts.
        max_steps: most tokens of an output.
        beam_size: 1 for greedy.
        batch_size: sources decoded together.
        device: where the model is.
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
    """`translate_texts` with the task's tokenizer and length limit."""
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
    task: Task,
    pairs: Sequence[Pair],
    *,
    beam_size: int = 1,
    batch_size: int = 64,
) -> Quality:
    """The scores of what `model` writes for the sources of `pairs`, against their references."""
    sources = [pair.source for pair in pairs]
    hypotheses = translate(model, task, sources, beam_size=beam_size, batch_size=batch_size)
    return score(hypotheses, [pair.reference for pair in pairs])
