"""Models in the settings that their decoding is timed in: how each is loaded, run and watched."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from textgen_env.generation.decoding import greedy
from textgen_env.models.export.common import Write
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_experiments.benchmarks.losses import process_memory, return_freed_memory
from textgen_experiments.benchmarks.worker_process import WorkerProcess
from textgen_experiments.models.formats import load_generator, save_as
from textgen_experiments.runs.factories import num_parameters
from textgen_experiments.runs.folder import DTYPES

Engine = Literal["eager", "compiled", "ctranslate2"]
PrecisionName = Literal["float32", "bfloat16", "int8"]
ENGINE_PRECISIONS: dict[Engine, tuple[PrecisionName, ...]] = {
    "eager": ("float32", "bfloat16"),
    "compiled": ("float32", "bfloat16"),
    "ctranslate2": ("float32", "int8"),
}
MAX_RECOMPILES = (
    64  # that a step is compiled in at most: for one row, for a cache with no room left, ...
)


@dataclass(frozen=True)
class BenchmarkCase:
    """A model in one setting: all that another process needs to load it.

    Attributes:
        name: what the table calls the model.
        model: its folder.
        parameters: a shared one counted once.
        engine: that runs it.
        precision: of its weights.
        folder: what is loaded: the folder of the model or of its export.
    """

    name: str
    model: Path
    parameters: int
    engine: Engine
    precision: PrecisionName
    folder: Path

    @property
    def setting(self) -> tuple[Engine, PrecisionName]:
        """What it has in common with other models' contestants."""
        return self.engine, self.precision

    def load(self) -> Write:
        """Its greedy decoding."""
        if self.engine == "compiled":
            model = load_model(self.folder, DTYPES[self.precision])
            return partial(greedy, CompiledSteps(model))
        exported = self.engine == "ctranslate2"  # has the precision that it was exported in
        return load_generator(self.folder, precision="float32" if exported else self.precision)

    def load_for_timing(self) -> Write:
        """The same, apart from others in this process where they would slow each other."""
        return load_in_worker_process(self.folder) if self.engine == "ctranslate2" else self.load()


class CompiledSteps:
    """A model whose step runs under `torch.compile`, for any number of rows.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: SequenceModel) -> None:
        self.special, self.vocab_size = model.special, model.vocab_size
        self.start, self.sequence_logits = model.start, model.sequence_logits
        self.step = torch.compile(  # pyright: ignore[reportCallIssue] - no overload has the limit
            model.step,
            dynamic=True,
            fullgraph=True,  # at the limit an error, where else it would run uncompiled
            recompile_limit=MAX_RECOMPILES,
            isolate_recompiles=True,
        )


def benchmark_cases(
    models: Mapping[Path, str], settings: Sequence[tuple[Engine, PrecisionName]], exports: Path
) -> Iterator[BenchmarkCase]:
    """Each model in each setting that it can run in.

    Args:
        models: their folders, and what the table calls them.
        settings: engines and precisions.
        exports: a folder for what must be exported.
    """
    for number, (folder, name) in enumerate(models.items()):
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        for engine, precision in settings:
            loaded = folder
            if engine == "ctranslate2":
                if not isinstance(model, Transformer):
                    continue
                loaded = exports / f"{number}-{precision}"
                loaded.mkdir()
                assert precision != "bfloat16", "PRECISIONS has no such setting"
                save_as(engine, model, tokenizer, loaded, precision=precision)
            yield BenchmarkCase(name, folder, num_parameters(model), engine, precision, loaded)


@dataclass
class TimedGeneration:
    """Writes the same batches again and again.

    Attributes:
        write: the contestant's.
        batches: (B, S) sources each.
        max_steps: most tokens of a sentence.
        pad: the padding token.
        seconds: of each batch, by pass.
        written: (B, max_steps) tokens of each batch in the last pass.
    """

    write: Write
    batches: Sequence[Tensor]
    max_steps: int
    pad: int
    seconds: list[list[float]] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)

    def __call__(self) -> int:
        """Write all batches once and count the tokens."""
        written, seconds = [], []
        for batch in self.batches:
            start = time.perf_counter()
            written.append(self.write(batch, self.max_steps))
            seconds.append(time.perf_counter() - start)
        self.written = written
        self.seconds.append(seconds)
        return sum(int((tokens != self.pad).sum()) for tokens in written)


def peak_memory(
    case: BenchmarkCase, batches: Sequence[Tensor], max_steps: int
) -> list[float | None]:
    """MiB at the highest, up to the end of each batch, in a process of the contestant's own.

    Args:
        case: not counted where it is compiled: most of it would be the compiler's.
        batches: (B, S) sources each, the smallest first.
        max_steps: most tokens of a sentence.
    """
    if case.engine == "compiled":
        return [None] * len(batches)
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        threads = torch.get_num_threads()
        return executor.submit(_measure_peaks, case, batches, max_steps, threads).result()


def _measure_peaks(
    case: BenchmarkCase, batches: Sequence[Tensor], max_steps: int, threads: int
) -> list[float | None]:
    torch.set_num_threads(threads)
    return_freed_memory()
    _load_libraries()
    before, peaks = process_memory("VmRSS"), []
    write = case.load()
    for batch in batches:
        write(batch, max_steps)
        peaks.append(process_memory("VmHWM") - before)
    return peaks


def _load_libraries() -> None:
    """Load and run the smallest model, for all that PyTorch loads at first use."""
    smallest = Transformer(TransformerConfig(8, 4, num_heads=1, feed_forward=4))
    with TemporaryDirectory() as folder:
        save_model(smallest, Path(folder))
        greedy(load_model(Path(folder)), torch.tensor([[3, 2]]), 2)


def load_in_worker_process(folder: Path) -> Write:
    """What the model in `folder` writes on CPUs, in a process of its own.

    CTranslate2's threads and PyTorch's share an OpenMP runtime: as soon as both have worked in one
    process they are more than there are cores, stop waiting actively, and slow each other.
    """
    write = WorkerProcess(_load_for_lists, folder)
    return lambda source, max_steps: torch.tensor(write(source.tolist(), max_steps))


def _load_for_lists(folder: Path) -> Callable[[list[list[int]], int], list[list[int]]]:
    """The same here, from lists to lists."""
    write = load_generator(folder)
    return lambda source, max_steps: write(torch.tensor(source), max_steps).tolist()
