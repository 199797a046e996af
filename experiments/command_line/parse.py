"""Options of a command read by tyro; a mistake in them ends the program with one line."""

import contextlib
import io
import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import cleandoc
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from textgen_experiments.command_line.answers import (
    fail,
    help_of,
    in_options,
    no_option,
    with_help,
)
from textgen_experiments.command_line.commands import Command, find_command
from textgen_experiments.command_line.common import HELP
from textgen_experiments.command_line.table import (
    NUMBER_WORDS,
    commands_by_name,
    option_of,
    refusal,
)

SPEC = "COMPLETION_SPEC = "
NUMBERS = re.compile(
    r"Error parsing (--\S+): (invalid literal for int|could not convert string to float)[^:]*: (.*)"
)
KINDS = {"invalid literal for int": "whole number", "could not convert string to float": "number"}
REQUIRED = re.compile(r"^. {5}(--\S+|[A-Z]+)(?= )", re.MULTILINE)  # the help is further right
WITHOUT_VALUE = re.compile(
    r"Missing value for argument '(.*)'|Error parsing (--\S+): .* could be instantiated from \[\]"
)
OF_A_CLASS = re.compile(r"^Error parsing (?!--)\S+: ")
UNREAD = "Unrecognized options: "
MISSING = "Missing from textgen "
CHOICES = re.compile(r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)\.")
NUMBER_IN_HELP = re.compile(rf"(?:{{None}}\|)?(?:{'|'.join(NUMBER_WORDS)})(?= •|$)")
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
        message = in_options(str(error), commands_by_name()[name].options_with(arguments))
        fail(with_help(message, name))


def known_options(command: Command, arguments: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return the options that a command has beside `arguments`, with the words each may be given.

    These are as in the table of options. They stand in the script of completion
    that tyro prints, the only place where it tells them to others.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _read_options(command, [*arguments, "--help"], ["--tyro-print-completion", "bash"])
    spec = printed.getvalue().split(SPEC, 1)[1].split("\n\n", 1)[0]
    return {
        flag: option.get("choices") or _numbers_of(option)
        for option in literal_eval(spec)["options"]
        for flag in option["flags"]
    }


def _numbers_of(option: Mapping[str, Any]) -> list[str]:
    """Return the words of an option that takes one number, of which some stand for all of a kind.

    Args:
        option: of tyro's completion, which begins its help with the kind, such as "{None}|INT".
    """
    kinds = NUMBER_IN_HELP.match(option["description"])
    return re.findall(r"\w+", kinds[0]) if kinds and option["nargs"] == 1 else []


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
        words = sorted(literal_eval(f"[{wrong[3]}]"))  # tyro's are in the order of a set
        message = refusal(wrong[2], wrong[1].strip("'"), words)
    elif option := WITHOUT_VALUE.search(message):
        message = f"{option[1] or option[2]} must be followed by a value, got nothing"
    elif message.startswith(MISSING):
        missing = " and ".join(_with_name(command, word) for word in REQUIRED.findall(complaint))
        message = f"{missing} must be given, got none"
    elif wrong := NUMBERS.search(message):
        message = f"{wrong[1]} must be a {KINDS[wrong[2]]}, got {wrong[3]}"
    else:
        known = known_options(command, arguments)
        _, words = command.load_defaults(arguments)  # those of a sweep's first run
        for option in filter(None, map(option_of, words)):
            if option not in known:
                fail(no_option(option, command.name, known))
        message = message.replace(UNREAD, f"textgen {command.name} takes fewer words, got further ")
    fail(f"{message} (see {help_of(command.name)})")


def _with_name(command: Command, word: str) -> str:
    """Return a required option, or the kind of a word without one with the name of its field."""
    return word if word.startswith("-") else f"{word} ({fields(command.load_options())[0].name})"


def _first_complaint(message: str) -> str:
    """Return the first paragraph of tyro's framed message, below its title, as one line."""
    lines = [line.strip("│ ") for line in message.splitlines()[1:]]
    ruled = ["" if set(line) <= set("─-╭╮╰╯") else line for line in lines]
    first = next((index for index, line in enumerate(ruled) if line), 0)
    return " ".join(takewhile(bool, ruled[first:]))
