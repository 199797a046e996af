"""Greedy decoding of the same weights by this project's engine and by others'.

Needs the extra `bench`.
"""

from pathlib import Path

import torch

from textgen_env.models.export.huggingface import load_hf
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode
from textgen_env.types import trimmed
from textgen_experiments.benchmarks.candidates import TimedGeneration, load_in_worker_process
from textgen_experiments.benchmarks.decode import length_sorted_batches
from textgen_experiments.benchmarks.peers.models import Size, random_words, save_marian
from textgen_experiments.models.formats import Format, load_generator, save_as
from textgen_experiments.runs.experiment import TASKS, VERSES_TEACHER
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import DTYPES

GENERATE, GREEDY = "transformers: generate", "textgen: greedy"
EXPORT_FORMATS: tuple[Format, ...] = ("hf", "ctranslate2")
NUM_BATCHES = 4


def marian_writers(
    folder: Path, size: Size, precision: str, device: str = "cpu"
) -> dict[str, TimedGeneration]:
    """A random Marian, by `generate` of `transformers` and by this project.

    Args:
        folder: an empty one.
        size: of the model and the batch.
        precision: of the weights, a name in `DTYPES`.
        device: where they write.
    """
    save_marian(folder, size)
    special, words = load_tokenizer(folder).special, random_words(size)
    source = torch.cat([words, torch.full_like(words[:, :1], special.end)], 1)
    writers = {
        GENERATE: load_hf(folder, DTYPES[precision], device),
        GREEDY: load_generator(folder, precision=precision, device=device),
    }
    return {
        name: TimedGeneration(write, [source.to(device)], size.max_steps, special.pad)
        for name, write in writers.items()
    }


def teacher_writers(
    folder: Path, batch_size: int, precision: str, device: str = "cpu"
) -> dict[str, TimedGeneration]:
    """The shipped teacher, by `transformers`, by CTranslate2 in float32, and by this project.

    Args:
        folder: an empty one.
        batch_size: of test sentences, of which there are `BATCHES`.
        precision: of the weights, a name in `DTYPES`.
        device: where they write; CTranslate2 on CPUs alone.
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
    return {
        name: TimedGeneration(write, batches, task.max_target_length, special.pad)
        for name, write in writers.items()
    }
