"""Names of all options, known before anything slow is imported.

`make options` writes `option_names.json`, and a test compares it with the options themselves. It
holds no help and no defaults. Options of plugins are not in it.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

TABLE = Path(__file__).with_name("option_names.json")
SCANNED = ("textgen_env", "textgen_agents", "textgen_experiments")
SECONDS_OF_INSTALLING = 60  # in which files of one version are written in any order
REGISTRY = "textgen_env.registry"
MOST_LISTED = 12  # names in a message beside a suggestion
GROUPS = "textgen."  # beginning of the names of entry points that register parts
ALIKE = 0.6  # least similarity of a suggestion

NUMBER_WORDS = {"INT": (int, "whole number"), "FLOAT": (float, "number")}
"""Word of the table that stands for all numbers of a kind -> how they are read, and their name."""

Options = Mapping[str, Sequence[str]]
"""Option -> the words that may follow it, also those of `NUMBER_WORDS`; empty for any word."""


@dataclass(frozen=True)
class CommandNames:
    """Names of a command's options.

    Attributes:
        summary: the first sentence of its help.
        options: options that it has in any case.
        parts: option that names a part -> its value -> options that the part brings.
        defaults: option that names a part -> its value where it is not given.
    """

    summary: str
    options: Options
    parts: Mapping[str, Mapping[str, Options]]
    defaults: Mapping[str, str]

    def all_options(self) -> set[str]:
        """Return its options with any part."""
        parts = chain.from_iterable(values.values() for values in self.parts.values())
        return set(chain(self.options, *parts))

    def options_with(self, words: Sequence[str]) -> dict[str, Sequence[str]]:
        """Return its options with the parts that `words` name, or else the default ones."""
        options = dict(self.options)
        for part, values in self.parts.items():
            chosen = value_after(part, words) or self.defaults.get(part, "")
            options |= values.get(chosen, {})
        return options

    def owners(self, option: str) -> list[str]:
        """Return the choices, such as "--agent skd", that bring an option."""
        return [
            f"{part} {value}"
            for part, values in self.parts.items()
            for value, options in values.items()
            if option in options
        ]


@cache
def commands_by_name() -> dict[str, CommandNames]:
    """Return the names of the options of each command."""
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: CommandNames(**fields) for name, fields in content.items()}


def value_after(option: str, words: Sequence[str]) -> str | None:
    """Return the value that `words` give to an option, None if it is not given."""
    found = None
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, is_joined, value = word.partition("=")
        if name == option:
            found = value if is_joined else following
    return found


def values_given(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option that `words` name with the word that follows it, if that is no option."""
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        option, is_joined, value = option_of(word), "=" in word, word.partition("=")[2]
        if option and (is_joined or not following.startswith("--")):
            yield option, value if is_joined else following


def refusal(option: str, value: str, words: Sequence[str]) -> str:
    """Return the message about a value that is none of an option's; empty where it may be one.

    Args:
        option: the option.
        value: the word that follows it.
        words: as in the table.
    """
    kinds = [NUMBER_WORDS[word] for word in words if word in NUMBER_WORDS]
    if not words or value in words or any(_is_read(read, value) for read, _ in kinds):
        return ""
    others = [word for word in words if word not in NUMBER_WORDS]
    if kinds:
        named = " or ".join([f"a {name}" for _, name in kinds] + others)
        return f"{option} must be {named}, got {value!r}"
    meant = suggestion(value, others)
    listed = f"{len(others)} names" if meant and len(others) > MOST_LISTED else ", ".join(others)
    return f"{option} must be one of {listed}, got {value!r}{f': {meant}' if meant else ''}"


def _is_read(read: Callable[[str], float], value: str) -> bool:
    """Return True if a word is a number of a kind."""
    try:
        read(value)
    except ValueError:
        return False
    return True


def option_of(word: str) -> str | None:
    """Return the option that a word names, with hyphens, None if it names none."""
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") and name != "--" else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return "perhaps you meant ..." for the known word most like `word`, empty without any."""
    known = list(known)
    last = word.strip("-").split(".")[-1]
    alike = [each for each in known if each.strip("-").split(".")[-1] == last]
    alike = alike or get_close_matches(word, known, 1, ALIKE)
    return f"perhaps you meant {alike[0]}" if alike else ""


def may_exist(option: str) -> bool:
    """Return True if a field of the option's name stands in a file that is newer than the table.

    The table may then lack the option, and the code itself decides.
    """
    field = option.split(".")[-1].strip("-").replace("-", "_").removeprefix("no_")
    declared = re.compile(rf"^\s+{re.escape(field)}\s*:", re.MULTILINE)
    return any(declared.search(path.read_text(encoding="utf-8")) for path in _newer_sources())


def parts_may_be_added() -> bool:
    """Return True if a part may be registered that the table lacks.

    It may be by the program that calls the command line, by a package, or here since then.
    """
    return (
        REGISTRY in sys.modules
        or any(group.startswith(GROUPS) for group in entry_points().groups)
        or any(_newer_sources())
    )


def _newer_sources() -> Iterator[Path]:
    """Yield the files that are newer than the table."""
    known_until = TABLE.stat().st_mtime + SECONDS_OF_INSTALLING
    return (path for path in _sources() if path.stat().st_mtime > known_until)


def _sources() -> Iterable[Path]:
    """Yield the files of the three packages, of which none is imported for it."""
    for package in SCANNED:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from Path(folder).rglob("*.py")
