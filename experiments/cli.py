"""The command `textgen`: options to functions, errors to one line and exit code 2."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union

import tyro

from textgen_agents import AGENTS
from textgen_agents.bases import OnDistributions
from textgen_agents.losses.labels import TopKWithTail
from textgen_agents.training.learner import TrainingError
from textgen_env import __version__
from textgen_env.experts.expert import ExpertError
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.tasks.packages import MissingPackageError
from textgen_experiments.benchmarks.decode import BenchmarkDecodeOptions, benchmark_decode
from textgen_experiments.benchmarks.env import BenchmarkEnvOptions, benchmark_env
from textgen_experiments.benchmarks.losses import BenchmarkLossesOptions, benchmark_losses
from textgen_experiments.benchmarks.peers.compare import BenchmarkPeersOptions, benchmark_peers
from textgen_experiments.benchmarks.step_floor import BenchmarkOptions, benchmark
from textgen_experiments.evaluation.evaluate import EvaluateOptions, evaluate
from textgen_experiments.models.export import ExportOptions, export
from textgen_experiments.models.generate import GenerateOptions, generate
from textgen_experiments.recipes.demo import DemoOptions, demo
from textgen_experiments.recipes.lin2020 import PAPER
from textgen_experiments.recipes.recovery import RecoveryOptions, recovery
from textgen_experiments.recipes.study import StudyOptions, study
from textgen_experiments.recipes.summarize import SummarizeOptions, summarize
from textgen_experiments.recipes.teacher import TeacherOptions, teacher
from textgen_experiments.reporting.report import ReportOptions, report
from textgen_experiments.runs.agent_options import Variant, with_variant
from textgen_experiments.runs.experiment import STUDENTS, TASKS, VERSES_TEACHER, Experiment
from textgen_experiments.runs.malloc import retain_freed_memory
from textgen_experiments.runs.train import train_with_bar

USAGE_ERROR = 2
SERVER, LOCAL = "--server.url", "http://localhost:8000/v1"
USER_ERRORS = (ValueError, OSError, MissingPackageError, TrainingError, ExpertError)


@dataclass(frozen=True)
class Choice:
    """Which parts an experiment is made of; each brings options of its own.

    Attributes:
        agent: the algorithm.
        task: where the text comes from.
        student: the kind of model that is trained.
        paper: settings of the paper on one of its data sets, which decide on task and student; None
            for none.
        variant: parts to be put in place of the agent's own.
    """

    agent: Literal[tuple(AGENTS)] = "imitkd_full"  # pyright: ignore[reportInvalidTypeForm]
    task: Literal[tuple(TASKS)] = "verses"  # pyright: ignore[reportInvalidTypeForm]
    student: Literal[tuple(STUDENTS)] = "recurrent"  # pyright: ignore[reportInvalidTypeForm]
    paper: Literal[tuple(PAPER)] | None = None  # pyright: ignore[reportInvalidTypeForm]
    variant: Annotated[Variant, tyro.conf.arg(name="")] = field(default_factory=Variant)


@dataclass(frozen=True)
class TrainOptions:
    """Train a student; the same command goes on with a run that was stopped.

    Attributes:
        output: the run's folder.
        choice: which agent, task and student; the options below are theirs.
        experiment: their settings.
    """

    output: Path
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=Experiment)


def run_training(options: TrainOptions) -> None:
    """Train as the options say."""
    train_with_bar(options.experiment, options.output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends with code 2 and one line if the user is to mend something."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        sys.stdout.write(f"textgen {__version__}\n")
        return
    retain_freed_memory()
    options = parse(_with_server(_hyphenated(arguments)))
    try:
        ACTIONS[type(options)](options)
    except USER_ERRORS as error:
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last checkpoint"
        _fail("stopped" + (goes_on if type(options) in RESUMED else ""))


def parse(arguments: list[str]) -> object:
    """The options of one command; a mistake in them ends the program."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                _commands(_choice(arguments), served=SERVER in arguments),
                prog="textgen",
                description="Imitation learning for text generation. --version prints the version.",
                args=arguments,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code:
            _fail(_first_complaint(complaint.getvalue()) + " (see textgen --help)")
        raise
    except ValueError as error:
        _fail(str(error))


def _hyphenated(arguments: list[str]) -> list[str]:
    """`benchmark decode` as `benchmark-decode`; a model's folder of such a name is `./decode`."""
    match arguments:
        case ["benchmark", "decode" | "env" | "losses" | "peers" as which, *rest]:
            return [f"benchmark-{which}", *rest]
    return arguments


def _with_server(arguments: list[str]) -> list[str]:
    """`--teacher URL` as the option of a server, which has further options."""
    words = [word for each in arguments for word in re.split("(?<=^--teacher)=", each)]
    return [
        SERVER if word == "--teacher" and re.match("https?://", after) else word
        for word, after in zip(words, [*words, ""][1:], strict=True)
    ]


def _choice(arguments: list[str]) -> Choice:
    """The parts that `train` is asked for: they decide which further options there are."""
    if arguments[:1] != ["train"]:
        return Choice()
    choice, _ = tyro.cli(Choice, args=arguments[1:], return_unknown_args=True, add_help=False)
    return choice


def _experiment(choice: Choice, *, served: bool) -> Experiment:
    """The defaults of `train`."""
    agent = AGENTS[choice.agent]()
    if served and isinstance(agent, OnDistributions):
        agent = replace(agent, label=TopKWithTail())  # which is all that a server tells
    agent = with_variant(agent, choice.variant)
    if choice.paper is not None:
        experiment = PAPER[choice.paper](agent)
    else:
        experiment = Experiment(
            task=TASKS[choice.task],
            teacher=VERSES_TEACHER if choice.task == "verses" and not served else None,
            student=STUDENTS[choice.student],
            agent=agent,
        )
    server = RemoteTeacher(LOCAL, tyro.MISSING, tyro.MISSING) if served else None
    return replace(experiment, server=server)


def _commands(choice: Choice, *, served: bool) -> Any:  # noqa: ANN401 - made at run time
    """All commands, with the defaults of `train` as `choice` says, and with a server if need be."""
    training = TrainOptions(tyro.MISSING, choice, _experiment(choice, served=served))
    named = [
        Annotated[kind, tyro.conf.subcommand(name, default=default, prefix_name=False)]
        for name, kind, default in (
            ("demo", DemoOptions, DemoOptions()),
            ("train", TrainOptions, training),
            ("evaluate", EvaluateOptions, EvaluateOptions(tyro.MISSING)),
            ("report", ReportOptions, ReportOptions(tyro.MISSING)),
            ("generate", GenerateOptions, GenerateOptions(tyro.MISSING)),
            ("export", ExportOptions, ExportOptions(tyro.MISSING, tyro.MISSING)),
            ("benchmark", BenchmarkOptions, BenchmarkOptions(tyro.MISSING)),
            ("benchmark-decode", BenchmarkDecodeOptions, BenchmarkDecodeOptions(tyro.MISSING)),
            ("benchmark-env", BenchmarkEnvOptions, BenchmarkEnvOptions()),
            ("recovery", RecoveryOptions, RecoveryOptions()),
            ("study", StudyOptions, StudyOptions()),
            ("summarize", SummarizeOptions, SummarizeOptions()),
            ("benchmark-losses", BenchmarkLossesOptions, BenchmarkLossesOptions()),
            ("benchmark-peers", BenchmarkPeersOptions, BenchmarkPeersOptions()),
            ("teacher", TeacherOptions, TeacherOptions()),
        )
    ]
    return Union[tuple(named)]  # noqa: UP007 - the members are known at run time only


def _first_complaint(message: str) -> str:
    """The first paragraph of tyro's framed message, below its title, as one line."""
    lines = [line.strip("│ ") for line in message.splitlines()[1:]]
    ruled = ["" if set(line) <= set("─-╭╮╰╯") else line for line in lines]
    first = next((index for index, line in enumerate(ruled) if line), 0)
    return " ".join(takewhile(bool, ruled[first:]))


def _fail(message: str) -> NoReturn:
    """Print one line and end with the code of a usage error."""
    sys.stderr.write(f"textgen: {message}\n")
    raise SystemExit(USAGE_ERROR)


RESUMED = (DemoOptions, TrainOptions, StudyOptions, TeacherOptions)
ACTIONS: dict[type, Callable[[Any], object]] = {
    DemoOptions: demo,
    TrainOptions: run_training,
    EvaluateOptions: evaluate,
    ReportOptions: report,
    GenerateOptions: generate,
    ExportOptions: export,
    BenchmarkOptions: benchmark,
    BenchmarkDecodeOptions: benchmark_decode,
    BenchmarkEnvOptions: benchmark_env,
    RecoveryOptions: recovery,
    StudyOptions: study,
    SummarizeOptions: summarize,
    BenchmarkLossesOptions: benchmark_losses,
    BenchmarkPeersOptions: benchmark_peers,
    TeacherOptions: teacher,
}
