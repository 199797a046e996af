"""Answers that need no PyTorch: version, help, completion, and words that nothing knows."""

import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from textgen_experiments.command_line.commands import COMMANDS, find_command, with_hyphen
from textgen_experiments.command_line.common import HELP, NAMES, UsageError, split_common
from textgen_experiments.command_line.completion import COMPLETE, SCRIPTS, completions
from textgen_experiments.command_line.table import (
    CommandNames,
    commands_by_name,
    may_exist,
    option_of,
    parts_may_be_added,
    refusal,
    suggestion,
    value_after,
    values_given,
)
from textgen_experiments.runs.pipes import quiet_when_unread

USAGE_ERROR = 2
LONGEST_MESSAGE = 2000  # characters
HELP_OPTIONS = {"-h", "--help"}
VERSION = "--version"
COMPLETION = "completion"
COMPLETION_SUMMARY = f"Print the completion of a shell: {' or '.join(SCRIPTS)}."


def answered(words: Sequence[str]) -> bool:
    """Answer a command line that can be answered at once, and return True if it could be.

    Raises:
        SystemExit: a word is none that the program knows; one line has been printed.
    """
    with quiet_when_unread():
        match words:
            case [word] if word == VERSION:
                sys.stdout.write(f"textgen {_version()}\n")
            case [] | ["-h" | "--help"]:
                sys.stdout.write(program_help())
            case [completion, shell] if completion == COMPLETION and shell in SCRIPTS:
                sys.stdout.write(SCRIPTS[shell])
            case [completion, *rest] if completion == COMPLETION and HELP_OPTIONS & {*rest}:
                sys.stdout.write(completion_help())
            case [complete, *line] if complete == COMPLETE:
                sys.stdout.writelines(f"{word}\n" for word in completions(line))
            case _:
                refuse_unknown(words)
                return False
    return True


def prepare_environment(words: Sequence[str]) -> None:
    """Set what PyTorch reads when it is imported, as the options of a known command say."""
    name = with_hyphen(split_common(words)[1])[0]
    command = find_command(name)
    common, _ = split_common(words, command.own if command else ())
    common.set_environment()


def refuse_unknown(words: Sequence[str]) -> None:
    """End the program with one line if a word names neither a command nor an option.

    What a plugin may know is left to those who import it.
    """
    try:
        _, others = split_common(words)
        command, *rest = with_hyphen(others) or [""]
        found = find_command(command)
        if found is None:
            raise UsageError(_no_command(command, rest))
        common, _ = split_common(words, found.own)
    except UsageError as error:
        fail(f"{error} (see textgen --help)")
    names = commands_by_name()[command]
    if common.plugins or not HELP_OPTIONS.isdisjoint(rest):
        return
    if not _knows_parts(names, rest) and parts_may_be_added():
        return
    _refuse_values(command, rest)
    known = names.all_options()
    for option in filter(None, map(option_of, rest)):
        if option not in known and not option.startswith("--tyro") and not may_exist(option):
            fail(no_option(option, command, names.options_with(rest)))


def _refuse_values(command: str, words: Sequence[str]) -> None:
    """End the program with one line if an option of a command is given what is none of its values.

    Numbers out of range are left to the settings themselves.
    """
    options = commands_by_name()[command].options_with(words)
    for option, value in values_given(words):
        message = refusal(option, value, options.get(option, ()))
        if message and not may_exist(option):
            fail(f"{message} (see {help_of(command)})")


def no_option(option: str, command: str, known: Iterable[str]) -> str:
    """Return the message about an option that a command does not have, or not with its parts.

    Args:
        option: the option.
        command: name of the command.
        known: options that it has, of which the nearest is named.
    """
    if owners := commands_by_name()[command].owners(option):
        return (
            f"{option} is an option of textgen {command} {_listed(owners)}: see {help_of(command)}"
        )
    meant = suggestion(option, [*known, *NAMES])
    remedy = f"{meant} (see {help_of(command)})" if meant else f"see {help_of(command)}"
    return f"{option} is no option of textgen {command}: {remedy}"


def help_of(command: str) -> str:
    """Return the command that prints the help of a command."""
    return f"textgen {command} --help"


def program_help() -> str:
    """Return the help of the program: its commands and the options that all of them have."""
    parser = ArgumentParser(
        prog="textgen",
        usage="textgen COMMAND [OPTIONS]",
        formatter_class=RawDescriptionHelpFormatter,
        description="Imitation learning for text generation.",
        epilog="textgen COMMAND --help explains the options of a command.",
        add_help=False,
    )
    commands = parser.add_argument_group("commands")
    for command in COMMANDS:
        commands.add_argument(command.name, help=commands_by_name()[command.name].summary)
    commands.add_argument(COMPLETION, help=COMPLETION_SUMMARY)
    common = parser.add_argument_group("options of every command")
    for name, help_text in (*HELP, (VERSION, "prints the version; without a command")):
        option, _, value = name.partition(" ")
        common.add_argument(option, metavar=value or "", help=help_text)
    return parser.format_help()


def completion_help() -> str:
    """Return the help of the command that prints the completion of a shell."""
    parser = ArgumentParser(
        prog=f"textgen {COMPLETION}",
        usage=f"textgen {COMPLETION} {{{','.join(SCRIPTS)}}}",
        description=COMPLETION_SUMMARY,
        epilog=f'eval "$(textgen {COMPLETION} bash)" completes commands in this shell.',
        add_help=False,
    )
    return parser.format_help()


def fail(message: str) -> NoReturn:
    """Print one line and end with the exit code of a usage error.

    A message that repeats a value of a damaged file may be of any length and is cut.
    """
    line = " ".join(message.split())
    line = line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."
    sys.stderr.write(f"textgen: {line}\n")
    raise SystemExit(USAGE_ERROR)


def with_help(message: str, command: str, fields: Iterable[str] = ()) -> str:
    """Return an error's message, with the command's help if it is about options and has no remedy.

    Args:
        message: in words of the options.
        command: name of the command.
        fields: names of arguments that have no option.
    """
    named, got = message.split(" ", 1)[0], message.rpartition(", got ")[2]
    is_open = named.startswith("--") or named in fields
    has_remedy = re.search("[:;] ", got)
    return f"{message} (see {help_of(command)})" if is_open and not has_remedy else message


def in_options(message: str, options: Iterable[str]) -> str:
    """Return an error's message with options in place of the names of settings in the code.

    Args:
        message: names settings as arguments of functions are named, such as `student_init`.
        options: those that the command has. Names that several of them end in stay as they are.
    """
    by_name: dict[str, set[str]] = {}
    for option in options:
        *parts, _ = ends = option.strip("-").split(".")
        if parts and parts[0] not in ("server", "student-from-teacher"):
            by_name.setdefault(ends[-1].replace("-", "_"), set()).add(option)
        by_name.setdefault(ends[0].replace("-", "_"), set()).add(f"--{ends[0]}")
    unique = {name: min(found) for name, found in by_name.items() if len(found) == 1}
    message = re.sub(r"^\w+(?= must )", lambda name: unique.get(name[0], name[0]), message)
    with_underscore = r"(?<![\w./-])[a-z]+(?:_[a-z]+)+(?![\w./])"
    return re.sub(with_underscore, lambda name: unique.get(name[0], name[0]), message)


def _knows_parts(names: CommandNames, words: Sequence[str]) -> bool:
    """Return True if the table has the parts that `words` name."""
    chosen = [(values, value_after(part, words)) for part, values in names.parts.items()]
    return all(value is None or value in values for values, value in chosen)


def _no_command(word: str, rest: Sequence[str]) -> str:
    """Return the message about a word that is no command."""
    if word == COMPLETION:
        shells = " or ".join(SCRIPTS)
        return f"{COMPLETION} must be followed by {shells}, got {' '.join(rest) or 'nothing'}"
    if not word:
        return "a command must be given, got none"
    names, kind = [*(command.name for command in COMMANDS), COMPLETION], "command"
    if word.startswith("-"):
        names, kind = [*NAMES, VERSION], "option before a command"
    meant = suggestion(option_of(word) or word, names)
    return f"{word} is no {kind}{f': {meant}' if meant else ''}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    """Return some of the names in a sentence."""
    return " or ".join(names[:most]) + (" or others" if len(names) > most else "")


def _version() -> str:
    try:
        return version("textgen-env")
    except PackageNotFoundError:  # the folder is on the path without having been installed
        return "0+unknown"
