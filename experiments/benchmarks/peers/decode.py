"""Greedy decoding of the same weights by this project and by other libraries.

Needs the extra `bench`.
"""

from pathlib import Path

import torch

from textgen_env.models.export.huggingface import load_hf
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import encode
from textgen_env.types import trimmed
from textgen_experiments.benchmarks.candidates import (
    TimedGeneration,
    load_in_worker_process,
    timed_generations,
)
from textgen_experiments.benchmarks.decode import length_sorted_batches
from textgen_experiments.benchmarks.peers.models import Size, random_words, save_marian
from textgen_experiments.models.formats import Format, load_generator, save_as
from textgen_experiments.runs.experiment import VERSES_TEACHER
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import DTYPES

GENERATE, GREEDY = "transformers: generate", "textgen: greedy"
EXPORT_FORMATS: tuple[Format, ...] = ("hf", "ctranslate2")
NUM_BATCHES = 4


def marian_writers(
    folder: Path, size: Size, precision: str, device: str = "cpu"
) -> dict[str, TimedGeneration]:
    """Return the sides that decode a random Marian: `generate` of `transformers`, this project.

    Args:
        folder: an empty folder.
        size: size of the model and the batch.
        precision: precision of the weights, a name in `DTYPES`.
        device: device of both sides.
    """
    save_marian(folder, size)
    special, words = load_tokenizer(folder).special, random_words(size)
    source = torch.cat([words, torch.full_like(words[:, :1], special.end)], 1)
    writers = {
        GENERATE: load_hf(folder, DTYPES[precision], device),
        GREEDY: load_generator(folder, precision=precision, device=device),
    }
    return timed_generations(writers, [source.to(device)], size.max_steps, special.pad)


def teacher_writers(
    folder: Path, batch_size: int, precision: str, device: str = "cpu"
) -> dict[str, TimedGeneration]:
    """Return the sides that decode the shipped teacher: transformers, CTranslate2, this project.

    Args:
        folder: an empty folder.
        batch_size: test sentences of each of the `NUM_BATCHES` batches.
        precision: precision of the weights, a name in `DTYPES`; CTranslate2 takes part in float32.
        device: device of all sides; CTranslate2 takes part on CPUs.
    """
    tokenizer, model = load_tokenizer(VERSES_TEACHER), load_model(VERSES_TEACHER)
    task, special = build_task(TASKS["verses"], tokenizer), tokenizer.special
    source = encode(task.test[: NUM_BATCHES * batch_size], task).source
    rows = length_sorted_batches(source, batch_size, special)
    batches = [trimmed(source[each], special).to(device) for each in rows]
    formats = EXPORT_FORMATS if precision == "float32" and device == "cpu" else EXPORT_FORMATS[:1]
    for format_ in formats:
        (folder / format_).mkdir()
        save_as(format_, model, tokenizer, folder / format_)
    writers = {GENERATE: load_hf(folder / "hf", DTYPES[precision], device)}
    if "ctranslate2" in formats:
        writers["CTranslate2"] = load_in_worker_process(folder / "ctranslate2")
    writers[GREEDY] = load_generator(VERSES_TEACHER, precision=precision, device=device)
    return timed_generations(writers, batches, task.max_target_length, special.pad)
