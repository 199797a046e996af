"""Command `generate`: a line of output for each line of input, batch by batch, for pipes."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from textgen_env.bounds import check_at_least
from textgen_env.generation.speculative import DRAFT_TOKENS
from textgen_env.models.export.common import GenerateFn
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.lines import NumberedLine, in_one_line, read_lines
from textgen_env.tasks.task import DataError, TextTask, encode_sources
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_experiments.evaluation.fastest_precision import ActingPrecision, resolve_precision
from textgen_experiments.models.drafts import load_speculative
from textgen_experiments.models.formats import format_of, load_generator
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import CONFIG, RunError, read_config
from textgen_experiments.runs.pipes import quiet_when_unread


@dataclass(frozen=True)
class GenerateOptions:
    """Translate lines of standard input to lines of standard output.

    Attributes:
        model: folder of a finished run, of a model, or of an export.
        beam_size: 1 for greedy.
        batch_size: lines decoded together; with 1 each line is answered at once.
        max_tokens: longest output, in tokens.
        precision: float32, bfloat16, int8 with products of 8-bit integers, or the fastest of them
            here, which is measured once for a machine and a batch size.
        draft: folder of a smaller model with the same tokenizer, such as a student's run, that
            proposes tokens: the texts are the model's own.
        draft_tokens: tokens that the draft proposes at a time.
    """

    model: Annotated[Path, tyro.conf.Positional]
    beam_size: int = 1
    batch_size: int = 64
    max_tokens: int = 128
    precision: ActingPrecision = "float32"
    draft: Path | None = None
    draft_tokens: int = DRAFT_TOKENS

    def __post_init__(self) -> None:
        check_at_least(self, beam_size=1, batch_size=1, max_tokens=1, draft_tokens=1)
        if self.draft is not None and self.beam_size > 1:
            raise ValueError(
                f"beam_size must be 1 with a draft, got {self.beam_size}: leave one of them out"
            )


def generate(options: GenerateOptions) -> None:
    """Write a line for each line of standard input; an empty line for an empty one.

    Standard input follows the rules of data files, and output is UTF-8 whatever the locale. A text
    that holds line ends is written with spaces for them.

    Raises:
        RunError: `model` is no folder of a model, or `draft` is none of a model for it.
        DataError: a line cannot be read.
    """
    folder = model_folder(options.model)
    tokenizer = load_tokenizer(folder)
    generate_tokens = _generator(folder, options)
    lines = _input_lines()
    while batch := [line.strip() for _, line in islice(lines, options.batch_size)]:
        filled = [line for line in batch if line]
        written = iter([])
        if filled:
            tokens = generate_tokens(encode_sources(filled, tokenizer), options.max_tokens)
            written = iter(tokenizer.decode(tokens.tolist()))
        with quiet_when_unread():
            sys.stdout.writelines(
                f"{in_one_line(next(written)) if line else ''}\n" for line in batch
            )


def _generator(folder: Path, options: GenerateOptions) -> GenerateFn:
    """Return the decoding of the model in `folder`, with the draft if there is one."""
    precision = options.precision
    if format_of(folder) != "ctranslate2":
        precision = resolve_precision(precision, folder, options.batch_size * options.beam_size)
    if options.draft is None:
        return load_generator(folder, beam_size=options.beam_size, precision=precision)
    return load_speculative(
        folder,
        model_folder(options.draft),
        draft_tokens=options.draft_tokens,
        precision=precision,
    )


def _input_lines() -> Iterator[NumberedLine]:
    """Return the lines of standard input, and let standard output write UTF-8."""
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)):
        if stream is None:  # as after `<&-` in a shell
            raise DataError(f"standard {name} must be open, got a closed one: give a file or pipe")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    return read_lines(sys.stdin.buffer, "standard input")


def model_folder(folder: Path) -> Path:
    """Return the folder of the model: that of the run in `folder`, or `folder` itself.

    Raises:
        RunError: `folder` holds neither a run with a model nor a model.
    """
    for candidate in (folder / "model", folder):
        if format_of(candidate):
            return candidate
    raise RunError(f"model must be the folder of a finished run or of a model, got {folder}")


def task_of(folder: Path, tokenizer: TextTokenizer) -> TextTask:
    """Return the task of the run of the model in `folder`; the demo's task without a run."""
    run = folder.parent
    known = (run / CONFIG).is_file()
    return build_task(read_config(run).experiment.task if known else TASKS["verses"], tokenizer)
