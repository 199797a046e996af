"""Options that every command has: plugins, quiet, threads and device."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from textgen_experiments.command_line.table import refusal

PLUGIN, QUIET, THREADS, DEVICE = "--plugin", "--quiet", "--threads", "--device"
DEVICES = ("cpu", "cuda")
FOLLOWED_BY = {
    PLUGIN: "a module or file",
    THREADS: "a number of threads",
    DEVICE: f"one of {', '.join(DEVICES)}",
}
HELP = (
    (f"{PLUGIN} MODULE_OR_FILE.py", "registers further agents, tasks and models; may be repeated"),
    (f"{THREADS} INT", "most threads of operators on CPUs, in each process"),
    (f"{DEVICE} {{{','.join(DEVICES)}}}", "where models are trained; CUDA where there is one"),
    (QUIET, "nothing on standard error but errors"),
)
"""Options of every command with what they do."""
NAMES = (*(name.split()[0] for name, _ in HELP), "--help")


class UsageError(ValueError):
    """Words on the command line that do not say what to do."""


@dataclass(frozen=True)
class CommonOptions:
    """Options of every command.

    Attributes:
        plugins: modules and files to import.
        threads: threads of operators on CPUs; None for the library's own choice.
        device: "cpu" or "cuda"; None for CUDA where there is one.
        is_quiet: True to print nothing but errors on standard error.

    Raises:
        UsageError: a value is none of its option.
    """

    plugins: tuple[str, ...] = ()
    threads: int | None = None
    device: str | None = None
    is_quiet: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{THREADS} must be at least 1, got {self.threads}")
        if self.device is not None and self.device not in DEVICES:
            raise UsageError(refusal(DEVICE, self.device, DEVICES))

    def set_environment(self) -> None:
        """Set what PyTorch reads when it is imported, here and in processes that are begun."""
        if self.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if self.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


def split_common(words: Sequence[str], own: Iterable[str] = ()) -> tuple[CommonOptions, list[str]]:
    """Return the options of every command, which may stand anywhere, and the other words.

    Args:
        words: the command line.
        own: options that the command has of its own, and which stay among the other words.

    Raises:
        UsageError: an option has no value, or a wrong one.
    """
    values: dict[str, list[str]] = {option: [] for option in FOLLOWED_BY}
    others, is_quiet, waiting = [], False, iter(words)
    for word in waiting:
        option, is_joined, value = word.partition("=")
        if word == QUIET:
            is_quiet = True
        elif option not in values or option in own:
            others.append(word)
        else:
            value = value if is_joined else next(waiting, "")
            if not value:
                raise UsageError(f"{option} must be followed by {FOLLOWED_BY[option]}, got nothing")
            values[option].append(value)
    threads, device = (values[option][-1:] for option in (THREADS, DEVICE))
    common = CommonOptions(
        tuple(values[PLUGIN]),
        _whole(threads[0]) if threads else None,
        device[0] if device else None,
        is_quiet,
    )
    return common, others


def _whole(text: str) -> int:
    """Return the number of threads that `text` says."""
    if not text.isdecimal():
        raise UsageError(f"{THREADS} must be a whole number, got {text!r}")
    return int(text)
