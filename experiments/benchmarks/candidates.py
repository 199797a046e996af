"""Cases of the decoding benchmark: a model, an engine and a precision, loaded and measured."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from textgen_env.generation.decoding import greedy
from textgen_env.generation.speculative import DRAFT_TOKENS, DraftCounts
from textgen_env.models.encoder_decoder import EncoderDecoder
from textgen_env.models.export.common import GenerateFn
from textgen_env.models.recurrent import Recurrent
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_experiments.models.drafts import SpeculativeWriter, load_speculative
from textgen_experiments.models.formats import load_generator, save_as
from textgen_experiments.runs.factories import num_parameters
from textgen_experiments.runs.folder import DTYPES
from textgen_experiments.runs.memory import process_memory, return_freed_memory
from textgen_experiments.runs.precisions import PrecisionName
from textgen_experiments.runs.worker_processes import WorkerProcesses, run_in_new_process

WriterKey = TypeVar("WriterKey")
Engine = Literal["eager", "compiled", "ctranslate2", "onnx", "speculative"]
ENGINE_PRECISIONS: dict[Engine, tuple[PrecisionName, ...]] = {
    "eager": ("float32", "bfloat16", "int8"),
    "compiled": ("float32", "bfloat16"),
    "ctranslate2": ("float32", "int8"),
    "onnx": ("float32", "int8"),
    "speculative": ("float32", "bfloat16", "int8"),
}
EXPORTED_MODELS: dict[Literal["ctranslate2", "onnx"], tuple[type[nn.Module], ...]] = {
    "ctranslate2": (Transformer,),
    "onnx": (EncoderDecoder, Recurrent),
}
"""Engines that run an export, and the models that they run."""
MAX_RECOMPILES = 64  # variants of a compiled step: one row, a cache without room left, ...


@dataclass(frozen=True)
class BenchmarkCase:
    """Model with an engine and a precision; holds all that another process needs to load it.

    Attributes:
        name: name of the model in the table.
        model: folder of the model.
        parameters: number of parameters, each shared one counted once.
        engine: the engine that runs it.
        precision: precision of its weights.
        folder: folder to load, of the model or of its export.
        target: folder of the model whose texts it drafts; None where it writes its own.
        draft_tokens: tokens that it proposes at a time.
    """

    name: str
    model: Path
    parameters: int
    engine: Engine
    precision: PrecisionName
    folder: Path
    target: Path | None = None
    draft_tokens: int = DRAFT_TOKENS

    @property
    def setting(self) -> tuple[Engine, PrecisionName]:
        """Engine and precision of what it is compared with: a draft's target is run eagerly."""
        return "eager" if self.target else self.engine, self.precision

    @property
    def is_exported(self) -> bool:
        """True if another program runs an export of the model."""
        return self.engine in EXPORTED_MODELS

    @property
    def author(self) -> Path:
        """Folder of the model whose texts are written."""
        return self.target or self.model

    def load(self) -> GenerateFn:
        """Return the greedy decoding of the model, or of the one that it drafts for."""
        if self.target:
            count = self.draft_tokens
            return load_speculative(
                self.target, self.folder, draft_tokens=count, precision=self.precision
            )
        if self.engine == "compiled":
            model = load_model(self.folder, DTYPES[self.precision])
            return partial(greedy, CompiledSteps(model))
        # An export has its precision already.
        return load_generator(
            self.folder, precision="float32" if self.is_exported else self.precision
        )

    def load_for_timing(self) -> GenerateFn:
        """Return the greedy decoding for timing; other programs run in a process of their own."""
        return load_in_worker_process(self.folder) if self.is_exported else self.load()


class CompiledSteps:
    """Model whose `step` runs under `torch.compile`, for any number of rows.

    Args:
        model: a model in evaluation mode.
    """

    def __init__(self, model: SequenceModel) -> None:
        self.special, self.vocab_size = model.special, model.vocab_size
        self.start, self.sequence_logits = model.start, model.sequence_logits
        self.step = torch.compile(  # pyright: ignore[reportCallIssue] - no overload has the limit
            model.step,
            dynamic=True,
            fullgraph=True,  # raises at the limit instead of running uncompiled
            recompile_limit=MAX_RECOMPILES,
            isolate_recompiles=True,
        )


def benchmark_cases(
    models: Mapping[Path, str],
    settings: Sequence[tuple[Engine, PrecisionName]],
    exports: Path,
    draft_tokens: int = DRAFT_TOKENS,
) -> Iterator[BenchmarkCase]:
    """Yield each model in each setting that it supports.

    CTranslate2 runs Transformers alone, ONNX Runtime all of this project's own models, and all
    models but the first are drafts of the first one.

    Args:
        models: folder of each model -> its name in the table.
        settings: engines and precisions.
        exports: folder to write exports to.
        draft_tokens: tokens that a draft proposes at a time.
    """
    for number, (folder, name) in enumerate(models.items()):
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        for engine, precision in settings:
            loaded, target = folder, None
            if engine == "speculative":
                if not number:
                    continue
                target = next(iter(models))
            if engine in EXPORTED_MODELS:
                if not isinstance(model, EXPORTED_MODELS[engine]):
                    continue
                loaded = exports / f"{number}-{engine}-{precision}"
                loaded.mkdir()
                assert precision != "bfloat16", "ENGINE_PRECISIONS has no such setting"
                save_as(engine, model, tokenizer, loaded, precision=precision)
            yield BenchmarkCase(
                name=name,
                model=folder,
                parameters=num_parameters(model),
                engine=engine,
                precision=precision,
                folder=loaded,
                target=target,
                draft_tokens=draft_tokens,
            )


@dataclass
class TimedGeneration:
    """Timed greedy decoding of the same batches, once at every call.

    Attributes:
        write: the greedy decoding to time.
        batches: sources, (B, S) each.
        max_steps: maximal number of tokens of a sentence.
        pad: id of the padding token.
        seconds: seconds of each batch, by call.
        written: tokens of each batch in the last call, (B, max_steps) each.
    """

    write: GenerateFn
    batches: Sequence[Tensor]
    max_steps: int
    pad: int
    seconds: list[list[float]] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)

    @property
    def draft_counts(self) -> DraftCounts | None:
        """Counts of all calls so far; None without a draft."""
        return self.write.decoder.counts if isinstance(self.write, SpeculativeWriter) else None

    def __call__(self) -> int:
        """Decode all batches once and return the number of tokens."""
        written, seconds = [], []
        for batch in self.batches:
            start = time.perf_counter()
            written.append(self.write(batch, self.max_steps))
            seconds.append(time.perf_counter() - start)
        self.written = written
        self.seconds.append(seconds)
        return sum(int((tokens != self.pad).sum()) for tokens in written)


def timed_generations(
    writers: Mapping[WriterKey, GenerateFn], batches: Sequence[Tensor], max_steps: int, pad: int
) -> dict[WriterKey, TimedGeneration]:
    """Return a `TimedGeneration` of the same batches for each writer."""
    return {name: TimedGeneration(each, batches, max_steps, pad) for name, each in writers.items()}


def peak_memory(
    case: BenchmarkCase, batches: Sequence[Tensor], max_steps: int
) -> list[float | None]:
    """Return the peak MiB up to the end of each batch, measured in a process of its own.

    Args:
        case: None is returned where it is compiled, because the compiler would take most of it.
        batches: sources, (B, S) each, the smallest first.
        max_steps: maximal number of tokens of a sentence.
    """
    if case.engine == "compiled":
        return [None] * len(batches)
    return run_in_new_process(_measure_peaks, case, batches, max_steps)


def _measure_peaks(
    case: BenchmarkCase, batches: Sequence[Tensor], max_steps: int
) -> list[float | None]:
    return_freed_memory()
    _load_libraries()
    before, peaks = process_memory("VmRSS"), []
    write = case.load()
    for batch in batches:
        write(batch, max_steps)
        peaks.append(process_memory("VmHWM") - before)
    return peaks


def _load_libraries() -> None:
    """Load and run the smallest model, so that PyTorch loads what it loads at first use."""
    smallest = Transformer(TransformerConfig(8, 4, num_heads=1, feed_forward=4))
    with TemporaryDirectory() as folder:
        save_model(smallest, Path(folder))
        greedy(load_model(Path(folder)), torch.tensor([[3, 2]]), 2)


def load_in_worker_process(folder: Path) -> GenerateFn:
    """Return the greedy decoding on CPUs of the model in `folder`, run in a process of its own.

    CTranslate2 and PyTorch share an OpenMP runtime. Once both have worked in one process, their
    threads outnumber the cores, no longer wait actively, and slow each other. ONNX Runtime's
    threads wait actively beside PyTorch's.
    """
    write = WorkerProcesses(_load_for_lists, folder)
    return lambda source, max_steps: torch.tensor(write(source.tolist(), max_steps))


def _load_for_lists(folder: Path) -> Callable[[list[list[int]], int], list[list[int]]]:
    """Return the greedy decoding of the model in `folder`, from lists to lists."""
    write = load_generator(folder)
    return lambda source, max_steps: write(torch.tensor(source), max_steps).tolist()
