"""Command `export`: a model in the format of another program, checked against the original."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from textgen_agents.evaluation.quality import bleu
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.files import naming_write_errors, settle
from textgen_env.generation.decoded_rows import decoded_rows_told_to
from textgen_env.generation.decoding import decode_all
from textgen_env.models.export.common import ExportError, GenerateFn
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.storage import Model, load_model, load_tokenizer
from textgen_env.tasks.task import TextTask, encode, references_of
from textgen_experiments.models.formats import Format, extra, load_generator, save_as
from textgen_experiments.models.generate import model_folder, task_of
from textgen_experiments.runs.folder import CONFIG, read_unchanged
from textgen_experiments.runs.progress import progress, tell

SENTENCES_PER_BATCH = 64


@dataclass(frozen=True)
class ExportOptions:
    """Write a model in a format that other programs load, and check that its texts stay the same.

    Attributes:
        model: folder of a finished run or of a model.
        format: hf for `transformers`, ctranslate2, onnx for ONNX Runtime, or safetensors for a
            folder of this project.
        output: folder to create; by default `export/FORMAT` in the model's folder.
        precision: of the weights; int8 for ctranslate2 and onnx.
        sentences: number of sentences of the validation split, from the first, for the check.
        least_same: share of these sentences, in [0, 1], that must have the same tokens as before.
    """

    model: Annotated[Path, tyro.conf.Positional]
    format: Format
    output: Path | None = None
    precision: Literal["float32", "int8"] = "float32"
    sentences: int = 200
    least_same: float = 0.99

    def __post_init__(self) -> None:
        check_at_least(self, sentences=1)
        check_shares(self, "least_same")

    @property
    def folder(self) -> Path:
        """Folder that the export creates."""
        name = self.format if self.precision == "float32" else f"{self.format}-{self.precision}"
        return self.output or self.model / "export" / name


def export(options: ExportOptions) -> None:
    """Write the folder, say what is done meanwhile, and how many sentences have the same tokens.

    Raises:
        ChangedFileError: a file that the model's run was trained with has other content now.
        ExportError: the format cannot hold the model, too few sentences have the same tokens, or
            the folder exists.
    """
    folder = model_folder(options.model)
    check_missing(options.folder)
    if (folder.parent / CONFIG).is_file():
        read_unchanged(folder.parent)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    task = task_of(folder, tokenizer)
    source, max_steps = (
        encode(task.validation[: options.sentences], task).source,
        task.max_target_length,
    )
    count, named = len(source), f"{options.format} in {options.precision}"
    with new_folder(options.folder) as written:
        tell(f"1 of 3: {named} is written")
        save_as(
            options.format,
            model,
            tokenizer,
            written,
            precision=options.precision,
            max_steps=max_steps,
        )
        tell(f"2 of 3: {count} validation sentences are decoded by {options.model}")
        with progress("decoding", count) as advance, decoded_rows_told_to(advance):
            own = decode_all(model, source, max_steps)
        tell("3 of 3: they are decoded by what was written, to be compared")
        generate = read_back(options.format, model, written)
        others = _decoded_in_parts(generate, source, max_steps)
        share, quality = same_share(own, others), compare_bleu(task, own, others)
        if share < options.least_same:
            raise ExportError(
                f"{named} must write {options.least_same:.1%} of {count} sentences as "
                f"{options.model} does, got {share:.1%}{quality}; if that is enough, set "
                f"--least-same {math.floor(100 * share) / 100}"
            )
    tell(
        f"{options.folder}: {share:.1%} of {count} sentences are written token for token as by "
        f"{options.model}, greedily{quality}",
    )


def _decoded_in_parts(generate: GenerateFn, source: Tensor, max_steps: int) -> Tensor:
    """Return the tokens that an export writes, (B, T) int64, and show how far it is."""
    rows = []
    with progress("decoding", len(source)) as advance:
        for part in source.split(SENTENCES_PER_BATCH):
            rows.append(generate(part, max_steps))
            advance(len(part))
    return torch.cat(rows)


def read_back(name: Format, model: Model, folder: Path) -> GenerateFn:
    """Load an export for greedy decoding by the program that its format is for.

    A pretrained model is loaded by `transformers` and decoded by this project.

    Args:
        name: the format.
        model: the exported model.
        folder: the export.
    """
    if name != "hf" or isinstance(model, HuggingFaceModel):
        return load_generator(folder)
    with extra("export"):
        from textgen_env.models.export.huggingface import load_hf
    return load_hf(folder)


def same_share(tokens: Tensor, others: Tensor) -> float:
    """Return the share of rows, (B, T) each, that are equal from the first to the last token."""
    return float((tokens == others).all(1).float().mean())


def compare_bleu(task: TextTask, own: Tensor, exported: Tensor) -> str:
    """Return the BLEU of an export beside the model's in words; nothing where no text differs.

    Args:
        task: task whose first validation pairs were decoded.
        own: (B, T) int64 tokens that the model writes.
        exported: (B, T) int64 tokens that the export writes.
    """
    if torch.equal(own, exported):
        return ""
    references = references_of(task.validation[: len(own)])
    scores = [
        bleu(task.tokenizer.decode(tokens.tolist()), references, task.target_language)
        for tokens in (exported, own)
    ]
    return " (BLEU {:.2f} beside {:.2f})".format(*scores)


def check_missing(folder: Path) -> None:
    """Raise `ExportError` if `folder` exists."""
    if folder.exists():
        raise ExportError(f"output must not exist, got {folder}; remove it or choose another")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `folder` at the end, unless an error is raised.

    Raises:
        ExportError: `folder` exists.
        WriteError: the folder cannot be written.
    """
    check_missing(folder)
    written = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(written, ignore_errors=True)
    with naming_write_errors(folder):
        written.mkdir(parents=True)
        try:
            yield written
            for path in [each for each in written.rglob("*") if each.is_file()]:
                settle(path)
            written.rename(folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)
