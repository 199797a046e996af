"""Commands of `textgen` by name, each of which is imported when it is called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        name: the word that calls it.
        module: module below `textgen_experiments` that holds the next two.
        options: dataclass of its options.
        function: name of the function that does it.
        required: number of leading options that have no default.
        is_resumable: True if the same command resumes work that was stopped.
        uses_cuda: True if it trains on a CUDA device where there is one; False for CPUs alone.
        defaults: name of the function that returns, for the words after the command, the options
            before they are set and the words that set them; None where options never depend on
            others.
        own: options that every command has, and of which this one has its own.
    """

    name: str
    module: str
    options: str
    function: str
    required: int = 0
    is_resumable: bool = False
    uses_cuda: bool = False
    defaults: str | None = None
    own: tuple[str, ...] = ()

    def load_options(self) -> type:
        """Import and return the dataclass of its options."""
        return self._load(self.options)

    def load_function(self) -> Callable[[Any], object]:
        """Import and return the function that does it."""
        return self._load(self.function)

    def load_defaults(self, words: Sequence[str]) -> tuple[Any, Sequence[str]]:
        """Return the options before they are set by `words`, and the words that set them."""
        if self.defaults is not None:
            return self._load(self.defaults)(words)
        from tyro import MISSING  # not for whoever only asks for names

        return self.load_options()(*[MISSING] * self.required), words

    def _load(self, name: str) -> Any:  # noqa: ANN401 - a class or a function
        return vars(import_module(f"textgen_experiments.{self.module}"))[name]


COMMANDS = (
    Command("demo", "recipes.demo", "DemoOptions", "demo", is_resumable=True, uses_cuda=True),
    Command(
        "train",
        "command_line.train",
        "TrainOptions",
        "run_training",
        is_resumable=True,
        uses_cuda=True,
        defaults="default_options",
    ),
    Command("evaluate", "evaluation.evaluate", "EvaluateOptions", "evaluate", required=1),
    Command(
        "settings",
        "evaluation.compare_settings",
        "SettingsOptions",
        "compare_settings",
        required=1,
    ),
    Command("report", "reporting.report", "ReportOptions", "report", required=1),
    Command("generate", "models.generate", "GenerateOptions", "generate", required=1),
    Command("serve", "serving.serve", "ServeOptions", "serve", required=1),
    Command("export", "models.export", "ExportOptions", "export", required=2),
    Command("benchmark", "benchmarks.step_floor", "BenchmarkOptions", "benchmark", required=1),
    Command(
        "benchmark-decode",
        "benchmarks.decode",
        "BenchmarkDecodeOptions",
        "benchmark_decode",
        required=1,
    ),
    Command("benchmark-env", "benchmarks.env", "BenchmarkEnvOptions", "benchmark_env"),
    Command("benchmark-serve", "benchmarks.serve", "BenchmarkServeOptions", "benchmark_serve"),
    Command("recovery", "recipes.recovery", "RecoveryOptions", "recovery", uses_cuda=True),
    Command("study", "recipes.study", "StudyOptions", "study", is_resumable=True, uses_cuda=True),
    Command(
        "paper-order",
        "recipes.paper_order",
        "PaperOrderOptions",
        "paper_order",
        is_resumable=True,
        uses_cuda=True,
    ),
    Command(
        "distill-verses",
        "recipes.distill_verses",
        "DistillVersesOptions",
        "distill_verses",
        is_resumable=True,
        uses_cuda=True,
    ),
    Command(
        "speed-curve",
        "recipes.speed_curve",
        "SpeedCurveOptions",
        "speed_curve",
        is_resumable=True,
        uses_cuda=True,
    ),
    Command("summarize", "recipes.summarize", "SummarizeOptions", "summarize", uses_cuda=True),
    Command("benchmark-losses", "benchmarks.losses", "BenchmarkLossesOptions", "benchmark_losses"),
    Command(
        "benchmark-peers",
        "benchmarks.peers.compare",
        "BenchmarkPeersOptions",
        "benchmark_peers",
        uses_cuda=True,
        own=("--device",),
    ),
    Command(
        "teacher",
        "recipes.teacher",
        "TeacherOptions",
        "teacher",
        is_resumable=True,
        uses_cuda=True,
    ),
)
BENCHMARKS = ("decode", "env", "losses", "peers", "serve")


def with_hyphen(words: list[str]) -> list[str]:
    """Join `benchmark decode` to `benchmark-decode`; `./decode` stays the folder of a model."""
    match words:
        case ["benchmark", which, *rest] if which in BENCHMARKS:
            return [f"benchmark-{which}", *rest]
    return words


def find_command(name: str) -> Command | None:
    """Return the command of that name, None if there is none."""
    return next((command for command in COMMANDS if command.name == name), None)
