"""The command `textgen`: options to functions, errors to one line and exit code 2."""

import contextlib
import io
import re
import shlex
import sys
from ast import literal_eval
from collections.abc import Sequence
from inspect import cleandoc
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import torch
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from textgen_agents.training.checkpoint import TrainingStopped
from textgen_agents.training.learner import TrainingError
from textgen_env.experts.expert import ExpertError
from textgen_env.registry import MissingPluginError, load_plugins
from textgen_env.tasks.packages import MissingPackageError
from textgen_experiments.command_line.answers import (
    answered,
    fail,
    help_of,
    in_options,
    no_option,
    refuse_unknown,
)
from textgen_experiments.command_line.commands import Command, find_command, with_hyphen
from textgen_experiments.command_line.common import DEVICE, HELP, CommonOptions, split_common
from textgen_experiments.command_line.table import (
    commands_by_name,
    option_of,
    suggestion,
)
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.malloc import retain_freed_memory
from textgen_experiments.runs.pipes import quiet_when_unread
from textgen_experiments.runs.progress import be_quiet

USER_ERRORS = (ValueError, OSError, MissingPackageError, TrainingError, ExpertError)
SPEC = "COMPLETION_SPEC = "
NUMBERS = re.compile(
    r"Error parsing (--\S+): (invalid literal for int|could not convert string to float)[^:]*: (.*)"
)
KINDS = {"invalid literal for int": "whole number", "could not convert string to float": "number"}
REQUIRED = re.compile(r"^Missing from textgen \S+: (.*)")
OF_A_CLASS = re.compile(r"^Error parsing (?!--)\S+: ")
UNREAD = "Unrecognized options: "
CHOICES = re.compile(r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)\.")
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    An error that the user can mend is printed as one line, and the program ends with code 2.
    """
    retain_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    if answered(words):
        return
    command, common, arguments = read_command(words)
    try:
        apply_common(command, common)
    except ValueError as error:
        fail(str(error))
    with quiet_when_unread():  # help is long
        options = parse([command.name, *arguments])
    try:
        with INTERRUPTS.unwinding(is_resumable=command.is_resumable):
            command.load_function()(options)
    except MissingPluginError as error:
        again = shlex.join(["textgen", *words, "--plugin", error.plugin])
        fail(f"{error}: run `{again}`, or install it if it is a package")
    except USER_ERRORS as error:
        fail(in_options(str(error), commands_by_name()[command.name].options_with(arguments)))
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


def parse(words: Sequence[str]) -> object:
    """Return the options of a command; a mistake in them ends the program.

    Args:
        words: name of a command, and its own options.
    """
    name, *arguments = words
    command, complaint = find_command(name), io.StringIO()
    assert command is not None, "it is known"
    try:
        with contextlib.redirect_stderr(complaint):
            return _read_options(command, arguments)
    except SystemExit as stop:
        if stop.code:
            _refuse(command, arguments, complaint.getvalue())
        raise
    except ValueError as error:
        fail(in_options(str(error), commands_by_name()[name].options_with(arguments)))


def known_options(command: Command, arguments: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return the options that a command has beside `arguments`, with the words each may be given.

    A word may be any, where there are none to choose from. They stand in the script of completion
    that tyro prints, the only place where it tells them to others.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _read_options(command, [*arguments, "--help"], ["--tyro-print-completion", "bash"])
    spec = printed.getvalue().split(SPEC, 1)[1].split("\n\n", 1)[0]
    return {
        flag: option.get("choices", ())
        for option in literal_eval(spec)["options"]
        for flag in option["flags"]
    }


def _read_options(
    command: Command, arguments: Sequence[str], words: Sequence[str] | None = None
) -> object:
    """Return what tyro makes of `words`, by default all of `arguments`.

    Args:
        command: the command whose options are read.
        arguments: its words, which may decide on which options there are.
        words: words to be read in their place.
    """
    kind = command.load_options()
    default, arguments = command.load_defaults(arguments)
    about = (kind.__doc__ or "").partition("Attributes:")[0].strip()
    common = ", ".join(name for name, _ in HELP)
    return tyro.cli(
        kind,
        prog=f"textgen {command.name}",
        description=f"{cleandoc(about)}\n\nEvery command also has {common}: see textgen --help.",
        default=default,
        args=arguments if words is None else words,
        config=(tyro.conf.AvoidSubcommands,),
        registry=PATHS,
    )


def _refuse(command: Command, arguments: Sequence[str], complaint: str) -> NoReturn:
    """End the program with one line about a mistake in a command's options."""
    message = OF_A_CLASS.sub("", _first_complaint(complaint))
    message = in_options(message, commands_by_name()[command.name].options_with(arguments))
    if wrong := CHOICES.search(message):
        value, option, choices = wrong[1].strip("'"), wrong[2], literal_eval(f"[{wrong[3]}]")
        meant = suggestion(value, choices)
        message = f"{option} must be one of {', '.join(choices)}, got {value!r}"
        message += f": {meant}" if meant else ""
    elif missing := REQUIRED.search(message):
        message = f"textgen {command.name} needs {missing[1]}"
    elif wrong := NUMBERS.search(message):
        message = f"{wrong[1]} must be a {KINDS[wrong[2]]}, got {wrong[3]}"
    else:
        known = known_options(command, arguments)
        for option in filter(None, map(option_of, arguments)):
            if option not in known:
                fail(no_option(option, command.name, known))
        message = message.replace(UNREAD, f"textgen {command.name} takes fewer words, got further ")
    fail(f"{message} (see {help_of(command.name)})")


def _first_complaint(message: str) -> str:
    """Return the first paragraph of tyro's framed message, below its title, as one line."""
    lines = [line.strip("│ ") for line in message.splitlines()[1:]]
    ruled = ["" if set(line) <= set("─-╭╮╰╯") else line for line in lines]
    first = next((index for index, line in enumerate(ruled) if line), 0)
    return " ".join(takewhile(bool, ruled[first:]))
