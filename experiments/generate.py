"""Text in, text out, one line each: works in a pipe, each batch shown as soon as it is written."""

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.evaluation import translate_texts
from experiments.run import DTYPES, RunError
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tokenizer import TextTokenizer


@dataclass(frozen=True)
class GenerateOptions:
    """Translate lines of standard input to lines of standard output.

    Attributes:
        model: folder of a finished run or of a model.
        beam_size: 1 for greedy.
        batch_size: lines decoded together; 1 to answer each line at once.
        max_tokens: longest output, in tokens.
        precision: float32, or bfloat16 where it is faster.
    """

    model: Annotated[Path, tyro.conf.Positional]
    beam_size: int = 1
    batch_size: int = 64
    max_tokens: int = 128
    precision: Literal["float32", "bfloat16"] = "float32"


def generate(options: GenerateOptions) -> None:
    """Write one line for each line read; an empty line for an empty one."""
    folder = model_folder(options.model)
    model, tokenizer = load_model(folder, DTYPES[options.precision]), load_tokenizer(folder)
    while lines := [line.strip() for line in islice(sys.stdin, options.batch_size)]:
        filled = [line for line in lines if line]
        written = iter(_translated(model, tokenizer, filled, options) if filled else [])
        for line in lines:
            sys.stdout.write((next(written) if line else "") + "\n")
        sys.stdout.flush()


def _translated(
    model: SequenceModel, tokenizer: TextTokenizer, lines: list[str], options: GenerateOptions
) -> list[str]:
    return translate_texts(
        model,
        tokenizer,
        lines,
        max_steps=options.max_tokens,
        beam_size=options.beam_size,
        batch_size=options.batch_size,
    )


def model_folder(folder: Path) -> Path:
    """`folder` itself if a model is in it, or the model of the run in it.

    Raises:
        RunError: there is neither.
    """
    for candidate in (folder / "model", folder):
        if (candidate / "model.safetensors").is_file():
            return candidate
    raise RunError(f"model must be the folder of a finished run or of a model, got {folder}")
