"""Greedy decoding of the same weights by this project's engine and by others'.

Needs the extra `bench`.
"""

from pathlib import Path

import torch

from textgen_env.models.export.huggingface import load_hf
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import encode
from textgen_env.types import trimmed
from textgen_experiments.benchmarks.candidates import TimedGeneration, load_apart
from textgen_experiments.benchmarks.decode import by_length
from textgen_experiments.benchmarks.peers.models import Size, random_words, save_marian
from textgen_experiments.models.formats import Format, load_generator, save_as
from textgen_experiments.runs.experiment import VERSES_TEACHER
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import DTYPES

GENERATE, GREEDY = "transformers: generate", "textgen: greedy"
FORMS: tuple[Format, ...] = ("hf", "ctranslate2")
BATCHES = 4


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
    source = encode(task.test[: BATCHES * batch_size], task).source
    rows = by_length(source, batch_size, special)
    batches = [trimmed(source[each], special).to(device) for each in rows]
    forms = FORMS if precision == "float32" and device == "cpu" else FORMS[:1]
    for form in forms:
        (folder / form).mkdir()
        save_as(form, model, tokenizer, folder / form)
    writers = {GENERATE: load_hf(folder / "hf", DTYPES[precision], device)}
    if "ctranslate2" in forms:
        writers["CTranslate2"] = load_apart(folder / "ctranslate2")
    writers[GREEDY] = load_generator(VERSES_TEACHER, precision=precision, device=device)
    return {
        name: TimedGeneration(write, batches, task.max_target_length, special.pad)
        for name, write in writers.items()
    }
