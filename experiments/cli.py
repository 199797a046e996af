"""The command `textgen`: options to functions, errors to one line and exit code 2."""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, cast

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from textgen_agents import AGENTS
from textgen_agents.losses.labels import Dense, TopKWithTail
from textgen_agents.training.checkpoint import TrainingStopped
from textgen_agents.training.learner import TrainingError
from textgen_env import __version__
from textgen_env.experts.expert import ExpertError
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.models import STUDENTS
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_env.registry import MissingPluginError, RegistryError, load_plugins
from textgen_env.tasks import TASKS
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
from textgen_experiments.recipes.distill_verses import DistillVersesOptions, distill_verses
from textgen_experiments.recipes.lin2020 import PAPER
from textgen_experiments.recipes.paper_order import PaperOrderOptions, paper_order
from textgen_experiments.recipes.recovery import RecoveryOptions, recovery
from textgen_experiments.recipes.speed_curve import SpeedCurveOptions, speed_curve
from textgen_experiments.recipes.study import StudyOptions, study
from textgen_experiments.recipes.summarize import SummarizeOptions, summarize
from textgen_experiments.recipes.teacher import TeacherOptions, teacher
from textgen_experiments.reporting.report import ReportOptions, report
from textgen_experiments.runs.agent_options import Variant, with_variant
from textgen_experiments.runs.choices import one_of
from textgen_experiments.runs.experiment import VERSES_TEACHER, Experiment
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.malloc import retain_freed_memory
from textgen_experiments.runs.pipes import quiet_when_unread
from textgen_experiments.runs.train import train_with_bar

USAGE_ERROR = 2
LONGEST_MESSAGE = 2000  # characters
PLUGIN = "--plugin"
DESCRIPTION = (
    "Imitation learning for text generation. Every command takes --plugin MODULE_OR_FILE.py, once "
    "or more, whose agents, tasks and models are then there. --version prints the version."
)
SERVER, LOCAL = "--server.url", "http://localhost:8000/v1"
LAYERS = "--student-from-teacher"
USER_ERRORS = (ValueError, OSError, MissingPackageError, TrainingError, ExpertError)


PATHS = ConstructorRegistry()


@PATHS.primitive_rule
def named_path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Return tyro's rule for paths; an empty word is none, which would be the working directory."""
    if info.type is not Path:
        return None

    def read(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError("a path must have at least one character, got ''")
        return Path(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


@dataclass(frozen=True)
class Choice:
    """Names of the parts of an experiment; each part brings options of its own.

    Attributes:
        agent: the algorithm.
        task: source of the text.
        student: the kind of model that is trained.
        paper: settings of the paper on one of its data sets, which decide on task and student; None
            for none.
        variant: parts to be put in place of the agent's own.
    """

    agent: Annotated[str, one_of(AGENTS)] = "imitkd_full"
    task: Annotated[str, one_of(TASKS)] = "verses"
    student: Annotated[str, one_of(STUDENTS)] = "recurrent"
    paper: Literal[tuple(PAPER)] | None = None  # pyright: ignore[reportInvalidTypeForm]
    variant: Annotated[Variant, tyro.conf.arg(name="")] = field(default_factory=Variant)


@dataclass(frozen=True)
class TrainOptions:
    """Train a student; the same command resumes a run that was stopped.

    Attributes:
        output: the run's folder.
        choice: names of the agent, task and student, which bring the options below.
        experiment: settings of these parts.
    """

    output: Path
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=Experiment)


def run_training(options: TrainOptions) -> None:
    """Train a student with a progress bar, as the options say."""
    train_with_bar(options.experiment, options.output)


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        name: the word that calls it.
        options: dataclass of its options.
        run: the function that does it.
        required: number of leading options that have no default.
        is_resumable: True if the same command resumes work that was stopped.
    """

    name: str
    options: type
    run: Callable[[Any], object]
    required: int = 0
    is_resumable: bool = False


COMMANDS = (
    Command("demo", DemoOptions, demo, is_resumable=True),
    Command("train", TrainOptions, run_training, required=1, is_resumable=True),
    Command("evaluate", EvaluateOptions, evaluate, required=1),
    Command("report", ReportOptions, report, required=1),
    Command("generate", GenerateOptions, generate, required=1),
    Command("export", ExportOptions, export, required=2),
    Command("benchmark", BenchmarkOptions, benchmark, required=1),
    Command("benchmark-decode", BenchmarkDecodeOptions, benchmark_decode, required=1),
    Command("benchmark-env", BenchmarkEnvOptions, benchmark_env),
    Command("recovery", RecoveryOptions, recovery),
    Command("study", StudyOptions, study, is_resumable=True),
    Command("paper-order", PaperOrderOptions, paper_order, is_resumable=True),
    Command("distill-verses", DistillVersesOptions, distill_verses, is_resumable=True),
    Command("speed-curve", SpeedCurveOptions, speed_curve, is_resumable=True),
    Command("summarize", SummarizeOptions, summarize),
    Command("benchmark-losses", BenchmarkLossesOptions, benchmark_losses),
    Command("benchmark-peers", BenchmarkPeersOptions, benchmark_peers),
    Command("teacher", TeacherOptions, teacher, is_resumable=True),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    An error that the user can mend is printed as one line, and the program ends with code 2.
    """
    retain_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        with quiet_when_unread():
            sys.stdout.write(f"textgen {__version__}\n")
        return
    try:
        plugins, arguments = split_plugins(words)
        load_plugins(plugins)
    except RegistryError as error:
        _fail(str(error))
    with quiet_when_unread():  # help is long
        options = parse(_with_server(_hyphenated(arguments)))
    command = next(each for each in COMMANDS if each.options is type(options))
    try:
        with INTERRUPTS.unwinding(is_resumable=command.is_resumable):
            command.run(options)
    except MissingPluginError as error:
        again = shlex.join(["textgen", *words, "--plugin", error.plugin])
        _fail(f"{error}: run `{again}`, or install it if it is a package")
    except USER_ERRORS as error:
        _fail(str(error))
    except (KeyboardInterrupt, TrainingStopped):
        INTERRUPTS.tell()
        raise SystemExit(INTERRUPTS.exit_code) from None


def split_plugins(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values of all options `--plugin`, and the other words.

    Raises:
        RegistryError: the last option has no value.
    """
    plugins, others, waiting = [], [], iter(words)
    for word in waiting:
        option, is_joined, value = word.partition("=")
        if option != PLUGIN:
            others.append(word)
            continue
        plugin = value if is_joined else next(waiting, "")
        if not plugin:
            raise RegistryError(f"{PLUGIN} must be followed by a module or file, got nothing")
        plugins.append(plugin)
    return plugins, others


def parse(arguments: list[str]) -> object:
    """Return the options of one command; a mistake in them ends the program."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                _commands(
                    _choice(arguments),
                    served=SERVER in arguments,
                    layered=_names_layers(arguments) or not {"-h", "--help"}.isdisjoint(arguments),
                ),
                prog="textgen",
                description=DESCRIPTION,
                args=arguments,
                config=(tyro.conf.AvoidSubcommands,),
                registry=PATHS,
            )
    except SystemExit as stop:
        if stop.code:
            _fail(_first_complaint(complaint.getvalue()) + " (see textgen --help)")
        raise
    except ValueError as error:
        _fail(str(error))


def _hyphenated(arguments: list[str]) -> list[str]:
    """Join `benchmark decode` to `benchmark-decode`; `./decode` stays the folder of a model."""
    match arguments:
        case ["benchmark", "decode" | "env" | "losses" | "peers" as which, *rest]:
            return [f"benchmark-{which}", *rest]
    return arguments


def _with_server(arguments: list[str]) -> list[str]:
    """Replace `--teacher URL` by the option of a server, which has further options."""
    words = [word for each in arguments for word in re.split("(?<=^--teacher)=", each)]
    return [
        SERVER if word == "--teacher" and re.match("(?i)https?:", after) else word
        for word, after in zip(words, [*words, ""][1:], strict=True)
    ]


def _choice(arguments: list[str]) -> Choice:
    """Return the parts that `train` is asked for; they decide on the further options.

    Raises:
        ValueError: a recurrent student is asked for that cannot have its teacher's layers.
    """
    if arguments[:1] != ["train"]:
        return Choice()
    choice, _ = tyro.cli(Choice, args=arguments[1:], return_unknown_args=True, add_help=False)
    names_student = any(word.split("=")[0] == "--student" for word in arguments)
    if choice.student == "recurrent" and names_student and _names_layers(arguments):
        raise ValueError(
            f"student must be hybrid beside {LAYERS}, for recurrent units under the teacher's "
            "encoder, or left out for the teacher's kind, got recurrent"
        )
    return choice


def _names_layers(arguments: list[str]) -> bool:
    """Return True if an option of `student_from_teacher` is given."""
    return any(word.replace("_", "-").startswith(LAYERS) for word in arguments)


def _experiment(choice: Choice, *, served: bool, layered: bool) -> Experiment:
    """Return the default experiment of `train` for the chosen parts."""
    agent = AGENTS[choice.agent]()
    if served and vars(agent).get("label") == Dense() and not agent.queries_while_writing:
        agent = replace(cast("Any", agent), label=TopKWithTail())  # all that a server tells
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
    layers = TeacherLayers() if layered else None
    return replace(experiment, server=server, student_from_teacher=layers)


def _commands(choice: Choice, *, served: bool, layered: bool) -> Any:  # noqa: ANN401 - made at run time
    """Return the union of all commands, with defaults of `train` that follow from `choice`."""
    named = []
    for command in COMMANDS:
        default = command.options(*[tyro.MISSING] * command.required)
        if command.options is TrainOptions:
            default = TrainOptions(
                tyro.MISSING, choice, _experiment(choice, served=served, layered=layered)
            )
        subcommand = tyro.conf.subcommand(command.name, default=default, prefix_name=False)
        named.append(Annotated[command.options, subcommand])
    return Union[tuple(named)]  # noqa: UP007 - the members are known at run time only


def _first_complaint(message: str) -> str:
    """Return the first paragraph of tyro's framed message, below its title, as one line."""
    lines = [line.strip("│ ") for line in message.splitlines()[1:]]
    ruled = ["" if set(line) <= set("─-╭╮╰╯") else line for line in lines]
    first = next((index for index, line in enumerate(ruled) if line), 0)
    return " ".join(takewhile(bool, ruled[first:]))


def _fail(message: str) -> NoReturn:
    """Print one line and end with the exit code of a usage error.

    A message that repeats a value of a damaged file may be of any length and is cut.
    """
    line = " ".join(message.split())
    line = line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."
    sys.stderr.write(f"textgen: {line}\n")
    raise SystemExit(USAGE_ERROR)
