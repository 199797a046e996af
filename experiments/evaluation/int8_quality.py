"""Cost in quality of rounding a model to 8-bit integers, judged on validation texts."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from textgen_agents.evaluation.bleu_metric import bleu_signature
from textgen_agents.evaluation.quality import bleu, paired_bootstrap, translate_texts
from textgen_env.digests import content_digest
from textgen_env.models.model_files import weight_files
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks.task import TextTask, references_of
from textgen_experiments.runs.kept_measurements import measured_once
from textgen_experiments.runs.precisions import load_to_act
from textgen_experiments.runs.progress import tell

JUDGED_PAIRS = 300  # validation pairs at most
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Int8Quality:
    """BLEU of a model's greedy texts of validation sources, in float32 and in int8.

    Attributes:
        float32: BLEU, from 0 to 100.
        int8: the same of the rounded model.
        p_value: of their difference, by a paired bootstrap over the texts.
    """

    float32: float
    int8: float
    p_value: float

    @property
    def is_worse(self) -> bool:
        """True if int8 has a lower BLEU by more than chance explains (p < 0.05)."""
        return self.int8 < self.float32 and self.p_value < SIGNIFICANT


def int8_keeps_quality(folder: Path, task: TextTask) -> bool:
    """Return whether the model in `folder` writes as well in int8 as in float32, and tell it.

    Other texts are no fault; a lower BLEU than chance explains is one. It is measured once for a
    machine, for these weights and this task.
    """
    weights = ", ".join(content_digest(path) for path in weight_files(folder))
    pairs = task.validation[:JUDGED_PAIRS]
    name = f"int8: {weights}, {len(pairs)} of {task.name}, {bleu_signature(task.target_language)}"
    found = measured_once(name, Int8Quality, partial(measure_int8_quality, folder, task))
    verdict = "which is worse" if found.is_worse else "no difference that counts"
    tell(
        f"int8: {folder} has BLEU {found.int8:.1f}, and {found.float32:.1f} in float32, on "
        f"{len(pairs)} validation pairs (p {found.p_value:.3f}): {verdict}"
    )
    return not found.is_worse


def measure_int8_quality(folder: Path, task: TextTask) -> Int8Quality:
    """Write the first validation texts in both precisions, and compare them."""
    pairs, language = task.validation[:JUDGED_PAIRS], task.target_language
    tokenizer, references = load_tokenizer(folder), references_of(pairs)
    exact, rounded = (
        translate_texts(
            load_to_act(folder, precision),
            tokenizer,
            [pair.source for pair in pairs],
            max_steps=task.max_target_length,
        )
        for precision in ("float32", "int8")
    )
    return Int8Quality(
        float32=bleu(exact, references, language),
        int8=bleu(rounded, references, language),
        p_value=paired_bootstrap(exact, rounded, references, language),
    )
