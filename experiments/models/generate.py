"""Command `generate`: a line of output for each line of input, batch by batch, for pipes."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from textgen_experiments.models.formats import EXPORTED_PRECISIONS, format_of, load_generator
from textgen_experiments.models.scored_texts import json_line, line_with_scores, load_scorer
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import CONFIG, RunError, read_config, runs_within
from textgen_experiments.runs.pipes import quiet_when_unread
from textgen_experiments.runs.progress import tell
from textgen_experiments.runs.worker_processes import WorkerProcesses

AnswerFn = Callable[[Sequence[str]], list[str]]
"""Function from texts to a line for each of them."""


@dataclass(frozen=True)
class GenerateOptions:
    """Translate lines of standard input to lines of standard output.

    A line is answered by one line, an empty one by an empty one. On a terminal each line is
    answered as it is entered.

    Attributes:
        model: folder of a finished run, of a model, or of an export.
        beam_size: 1 for greedy.
        batch_size: lines decoded together; with 1 each line is answered at once, and more than 128
            are faster still where memory allows.
        max_tokens: longest output, in tokens.
        precision: float32, bfloat16, int8 with products of 8-bit integers, or the fastest of them
            here, which is measured once for a machine and a batch size.
        draft: folder of a smaller model with the same tokenizer, such as a student's run, that
            proposes tokens: the texts are the model's own.
        draft_tokens: tokens that the draft proposes at a time.
        scores: write the mean log-probability of the tokens and their sum, in nats, before each
            text, separated by tabs.
        json_lines: write each line as an object with the source, its texts and their scores; that
            of an empty line has no texts.
        n_best: texts for each line, the best of the beam; with `--json-lines`.
        processes: batches that are written side by side, each with its share of the threads; for
            long inputs, as beginning a process takes seconds.
    """

    model: Annotated[Path, tyro.conf.Positional]
    beam_size: int = 1
    batch_size: int = 128
    max_tokens: int = 128
    precision: ActingPrecision = "float32"
    draft: Path | None = None
    draft_tokens: int = DRAFT_TOKENS
    scores: bool = False
    json_lines: bool = False
    n_best: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, beam_size=1, batch_size=1, max_tokens=1, draft_tokens=1, n_best=1)
        check_at_least(self, processes=1)
        if self.draft is not None and self.beam_size > 1:
            raise ValueError(
                f"beam_size must be 1 with a draft, got {self.beam_size}: leave one of them out"
            )
        if self.draft is not None and self.has_scores:
            raise ValueError(
                f"draft must be left out where scores are written, got {self.draft}: the model "
                "writes and scores its texts in one search"
            )
        if self.n_best > 1 and not self.json_lines:
            raise ValueError(
                f"n_best must be 1 where a line is one text, got {self.n_best}: add --json-lines"
            )
        if self.n_best > self.beam_size:
            raise ValueError(
                f"n_best must be at most beam_size ({self.beam_size}), got {self.n_best}: raise "
                "--beam-size"
            )

    @property
    def has_scores(self) -> bool:
        """True if texts are written with their scores."""
        return self.scores or self.json_lines


def generate(options: GenerateOptions) -> None:
    """Write a line for each line of standard input.

    Standard input follows the rules of data files, and output is UTF-8 whatever the locale. A text
    that holds line ends is written with spaces for them, but in JSON.

    Raises:
        RunError: `model` is no folder of a model, `draft` is none of a model for it, or a process
            was killed.
        DataError: a line cannot be read.
    """
    folder = model_folder(options.model)
    options = replace(options, precision=_precision(folder, options))
    lines, together = _input_lines(), options.batch_size
    if sys.stdin.isatty():
        options, together = replace(options, processes=1), 1
        tell("each line is answered; Ctrl-D ends")
    batches = iter(lambda: [line.strip() for _, line in islice(lines, together)], [])
    for answer in _answers(folder, options, batches):
        with quiet_when_unread():
            sys.stdout.writelines(f"{line}\n" for line in answer)


def _answers(
    folder: Path, options: GenerateOptions, batches: Iterable[list[str]]
) -> Iterator[list[str]]:
    """Yield the answers to batches of lines in their order, made in this process or in others."""
    if options.processes == 1:
        yield from map(answer_function(folder, options), batches)
        return
    workers = WorkerProcesses(answer_function, folder, options, count=options.processes)
    try:
        yield from workers.map(batches)
    finally:
        workers.end()


def answer_function(folder: Path, options: GenerateOptions) -> AnswerFn:
    """Load the model in `folder`, and return the function that answers lines, empty ones too."""
    answer_texts = _text_answers(folder, options)
    empty = json_line("", ()) if options.json_lines else ""

    def answer(lines: Sequence[str]) -> list[str]:
        filled = [line for line in lines if line]
        written = iter(answer_texts(filled) if filled else ())
        return [next(written) if line else empty for line in lines]

    return answer


def _text_answers(folder: Path, options: GenerateOptions) -> AnswerFn:
    """Return the function that answers texts, none of them empty, with scores if asked for."""
    if options.has_scores:
        return _scored_answers(folder, options)
    tokenizer, generate_tokens = load_tokenizer(folder), _generator(folder, options)

    def answer(texts: Sequence[str]) -> list[str]:
        tokens = generate_tokens(encode_sources(texts, tokenizer), options.max_tokens)
        return [in_one_line(text) for text in tokenizer.decode(tokens.tolist())]

    return answer


def _scored_answers(folder: Path, options: GenerateOptions) -> AnswerFn:
    """Return the function that answers texts by lines with scores."""
    score = load_scorer(
        folder,
        beam_size=options.beam_size,
        count=options.n_best,
        max_tokens=options.max_tokens,
        precision=options.precision,
    )

    def answer(texts: Sequence[str]) -> list[str]:
        found = score(texts)
        if options.json_lines:
            return [json_line(text, each) for text, each in zip(texts, found, strict=True)]
        return [line_with_scores(each) for each in found]

    return answer


def _generator(folder: Path, options: GenerateOptions) -> GenerateFn:
    """Return the decoding of the model in `folder`, with the draft if there is one."""
    if options.draft is None:
        return load_generator(folder, beam_size=options.beam_size, precision=options.precision)
    return load_speculative(
        folder,
        model_folder(options.draft),
        draft_tokens=options.draft_tokens,
        precision=options.precision,
    )


def _precision(folder: Path, options: GenerateOptions) -> ActingPrecision:
    """Return the precision of the model in `folder`, measured if need be."""
    if format_of(folder) in EXPORTED_PRECISIONS:
        return options.precision
    return resolve_precision(options.precision, folder, options.batch_size * options.beam_size)


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
    raise RunError(
        "model must be the folder of a finished run or of a model, got "
        f"{folder}{runs_within(folder)}"
    )


def task_of(folder: Path, tokenizer: TextTokenizer) -> TextTask:
    """Return the task of the run of the model in `folder`; the demo's task without a run."""
    run = folder.parent
    known = (run / CONFIG).is_file()
    return build_task(read_config(run).experiment.task if known else TASKS["verses"], tokenizer)
