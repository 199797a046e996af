"""The command `textgen`: options to functions, errors to one line and exit code 2."""

import os
import shlex
import sys
from collections.abc import Sequence

import torch

from textgen_agents.training.checkpoint import TrainingStopped
from textgen_agents.training.learner import TrainingError
from textgen_env.experts.expert import ExpertError
from textgen_env.registry import MissingPluginError, load_plugins
from textgen_env.tasks.packages import MissingPackageError
from textgen_experiments.command_line.answers import (
    answered,
    fail,
    in_options,
    refuse_unknown,
    with_help,
)
from textgen_experiments.command_line.commands import Command, find_command, with_hyphen
from textgen_experiments.command_line.common import DEVICE, CommonOptions, split_common
from textgen_experiments.command_line.parse import parse
from textgen_experiments.command_line.table import commands_by_name
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.malloc import retain_freed_memory
from textgen_experiments.runs.other_work import advice_on_threads
from textgen_experiments.runs.pipes import quiet_when_unread
from textgen_experiments.runs.progress import be_quiet, tell

USER_ERRORS = (ValueError, OSError, MissingPackageError, TrainingError, ExpertError)


def main(argv: Sequence[str] | None = None, *, busy_elsewhere: float = 0.0) -> None:
    """Run the command line.

    An error that the user can mend is printed as one line, and the program ends with code 2.

    Args:
        argv: its words; None for those that the program was called with.
        busy_elsewhere: cores that other processes keep busy.
    """
    retain_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    if answered(words):
        return
    command, common, arguments = read_command(words)
    try:
        apply_common(command, common)
    except ValueError as error:
        fail(with_help(str(error), command.name))
    with quiet_when_unread():  # help is long
        options = parse([command.name, *arguments])
    advice = advice_on_threads(busy_elsewhere, os.cpu_count() or 1, torch.get_num_threads())
    if advice:
        tell(advice)
    try:
        with INTERRUPTS.unwinding(is_resumable=command.is_resumable):
            command.load_function()(options)
    except MissingPluginError as error:
        again = shlex.join(["textgen", *words, "--plugin", error.plugin])
        fail(f"{error}: run `{again}`, or install it if it is a package")
    except USER_ERRORS as error:
        known = commands_by_name()[command.name].options_with(arguments)
        fail(with_help(in_options(str(error), known), command.name, vars(options)))
    except (KeyboardInterrupt, TrainingStopped):
        INTERRUPTS.tell()
        raise SystemExit(INTERRUPTS.exit_code) from None


def read_command(words: Sequence[str]) -> tuple[Command, CommonOptions, list[str]]:
    """Return the command, the options of every command, and its own; its name must be known."""
    refuse_unknown(words)
    name = with_hyphen(split_common(words)[1])[0]
    command = find_command(name)
    assert command is not None, "it is known"
    common, others = split_common(words, command.own)
    return command, common, with_hyphen(others)[1:]


def apply_common(command: Command, common: CommonOptions) -> None:
    """Load the plugins and set what the options of every command say.

    Raises:
        RegistryError: a plugin cannot be imported.
        ValueError: the command does not run on the device, or there is none.
    """
    load_plugins(common.plugins)
    common.set_environment()  # for processes that are begun
    if common.is_quiet:
        be_quiet()
    if common.threads is not None:
        torch.set_num_threads(common.threads)
    if common.device == "cuda" and not command.uses_cuda:
        raise ValueError(f"{DEVICE} must be cpu for textgen {command.name}, got cuda")
    if common.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{DEVICE} must be cpu where PyTorch finds no CUDA device, got cuda")
