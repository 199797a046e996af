"""Command `train`: its options, which depend on the agent, the task and the student."""

import re
import shlex
from collections.abc import Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from textgen_agents import AGENTS
from textgen_agents.losses.labels import Dense, TopKWithTail
from textgen_agents.training.distributed import this_process
from textgen_env.bounds import check_at_least
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.models import STUDENTS
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import TaskConfig
from textgen_experiments.command_line.sweep import (
    points_of,
    read_axes,
    split_sweeps,
    swept_cells,
    words_of_point,
)
from textgen_experiments.recipes.lin2020 import PAPER
from textgen_experiments.runs.agent_options import Variant, with_variant
from textgen_experiments.runs.choices import one_of
from textgen_experiments.runs.experiment import VERSES_TEACHER, Experiment
from textgen_experiments.runs.kernel_caches import limit_kept_products
from textgen_experiments.runs.many_runs import PlanOptions, train_cells
from textgen_experiments.runs.outcome import summary_of, words_of_plugins
from textgen_experiments.runs.plan import begin_plan
from textgen_experiments.runs.progress import tell
from textgen_experiments.runs.train import check_start, train, train_with_bar

SERVER, LOCAL = "--server.url", "http://localhost:8000/v1"
LAYERS = "--student-from-teacher"


@dataclass(frozen=True)
class Choice:
    """Names of the parts of an experiment; each part brings options of its own.

    Attributes:
        agent: the algorithm, which brings the options --agent.NAME.
        task: source of the text, which brings the options --task.NAME.
        student: the kind of model that is trained, which brings the options --student.NAME.
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

    The options of agent, task and student are those of the chosen ones: `textgen train --agent skd
    --task copy --help` shows those of skd and copy.

    Attributes:
        output: the run's folder.
        choice: names of the agent, task and student, which bring the options below.
        experiment: settings of these parts.
        seeds: runs that differ in their seed alone, the first of which is --learner.seed; several
            runs have folders of their own in that of the output.
        sweep: an option and values that each make a run, as learner.learning-rate=1e-3,2e-3; may
            be repeated, for a run of each combination.
        plan: which of several runs are done, and where.
        words: words of the command line that all runs have; set by the program.
    """

    output: Path
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=Experiment)
    seeds: int = 1
    sweep: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    plan: Annotated[PlanOptions, tyro.conf.arg(name="")] = field(default_factory=PlanOptions)
    words: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()

    def __post_init__(self) -> None:
        check_at_least(self, seeds=1)
        if not self.has_several_runs and self.plan != PlanOptions():
            raise ValueError(
                "at_once, shard and cluster must be left out for a single run, got one of them: "
                "give --seeds or --sweep"
            )

    @property
    def has_several_runs(self) -> bool:
        """True if the options make a plan of runs."""
        return self.seeds > 1 or bool(self.sweep)


def run_training(options: TrainOptions) -> None:
    """Train a student as the options say, or several, and tell what may come next."""
    if options.has_several_runs:
        train_plan(options)
    else:
        train_one(options)


def train_plan(options: TrainOptions) -> None:
    """Train the runs that `seeds` and `sweep` make, those that are not done yet.

    Raises:
        ValueError: two of them have the same settings, or they are to be trained by the processes
            of `torchrun`.
        PlanError: as `begin_plan` and `train_cells`.
        SystemExit: a swept value is none of its option; one line has been printed.
    """
    if this_process().num_processes > 1:
        raise ValueError(
            "seeds and sweep must be left out with several processes, which are those of one run, "
            f"got {this_process().num_processes}"
        )
    cells = swept_cells(options.output, options.words, options.sweep, seeds=options.seeds)
    begin_plan(options.output, cells, check_start)
    if train_cells(options.output, cells, train, options.plan):
        folders = shlex.join(map(str, cells)) + words_of_plugins()
        tell(f"all {len(cells)} runs are done; test and time them: textgen evaluate {folders}")


def train_one(options: TrainOptions) -> None:
    """Train a student as the options say, and tell what came out and what may come next."""
    limit_kept_products()
    outcome = train_with_bar(options.experiment, options.output)
    if this_process().is_main_process:
        tell(summary_of(options.output, outcome, options.experiment.learner.updates))


def default_options(words: Sequence[str]) -> tuple[TrainOptions, list[str]]:
    """Return the options of `train` with the parts that `words` name, and the words that set them.

    Raises:
        ValueError: a recurrent student is asked for that cannot have its teacher's layers.
    """
    others, sweeps = split_sweeps(words)
    first = points_of(read_axes(sweeps, others))[0]  # whose parts decide on the options
    arguments = with_server([*others, *words_of_point(first)])
    choice = _choice(arguments)
    served = SERVER in arguments
    is_help = not {"-h", "--help"}.isdisjoint(arguments)
    layered = _names_layers(arguments) or is_help
    experiment = _experiment(choice, served=served, layered=layered)
    options = TrainOptions(
        tyro.MISSING, choice, experiment, sweep=tuple(sweeps), words=tuple(others)
    )
    return options, arguments


def with_server(arguments: Sequence[str]) -> list[str]:
    """Replace `--teacher URL` by the option of a server, which has further options."""
    words = [word for each in arguments for word in re.split("(?<=^--teacher)=", each)]
    return [
        SERVER if word == "--teacher" and re.match("(?i)https?:", after) else word
        for word, after in zip(words, [*words, ""][1:], strict=True)
    ]


def _choice(arguments: Sequence[str]) -> Choice:
    """Return the parts that are asked for; they decide on the further options."""
    choice, _ = tyro.cli(Choice, args=arguments, return_unknown_args=True, add_help=False)
    names_student = any(word.split("=")[0] == "--student" for word in arguments)
    if choice.student == "recurrent" and names_student and _names_layers(arguments):
        raise ValueError(
            f"student must be hybrid beside {LAYERS}, for recurrent units under the teacher's "
            "encoder, or left out for the teacher's kind, got recurrent"
        )
    return choice


def _names_layers(arguments: Sequence[str]) -> bool:
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
            task=_with_gaps(TASKS[choice.task]),
            teacher=VERSES_TEACHER if choice.task == "verses" and not served else None,
            student=STUDENTS[choice.student],
            agent=agent,
        )
    server = RemoteTeacher(LOCAL, tyro.MISSING, tyro.MISSING) if served else None
    layers = TeacherLayers() if layered else None
    return replace(experiment, server=server, student_from_teacher=layers)


def _with_gaps(task: TaskConfig) -> TaskConfig:
    """Return a task whose fields without a default must be given on the command line."""
    copied = copy(task)
    for each in fields(task):
        if each.default is MISSING and each.default_factory is MISSING:
            object.__setattr__(copied, each.name, tyro.MISSING)  # checked once it is given
    return copied
