"""Table of all options by name, as the command line has it before PyTorch is imported.

`make options` writes it, and a test compares it with the options themselves.
"""

import json
from collections.abc import Iterable
from typing import Any

from textgen_agents import AGENTS
from textgen_env.models import STUDENTS
from textgen_env.registry import Registry
from textgen_env.tasks import TASKS
from textgen_experiments.command_line.commands import COMMANDS, find_command
from textgen_experiments.command_line.parse import known_options
from textgen_experiments.command_line.table import TABLE
from textgen_experiments.runs.agent_options import F_DIVERGENCES, LABELS, ROLL_INS, SCHEDULES

REGISTRIES = {"agent": AGENTS, "task": TASKS, "student": STUDENTS}
TRAIN = find_command("train")
AGENT_OF_VARIANT = {
    "--schedule": ("imitkd", SCHEDULES),
    "--label": ("imitkd_full", LABELS),
    "--roll-in": ("imitkd", ROLL_INS),
    "--kind": ("f_distill", F_DIVERGENCES),
}
"""Option -> an agent that has it, and the words it may be followed by."""
EVERYTHING = [
    "--server.url",
    "http://x",
    "--student-from-teacher.decoder",
    "1",
    "--teacher",
    "None",
]


def option_names() -> dict[str, dict[str, object]]:
    """Return the table, of this project's own parts."""
    table = {}
    for command in COMMANDS:
        is_train = command is TRAIN
        options = known_options(command, EVERYTHING if is_train else [])
        about = " ".join(command.load_options().__doc__.split("\n\n")[0].split())
        table[command.name] = {
            "summary": about,
            "options": _sorted(options, without=("--agent.", "--task.") if is_train else ()),
            "parts": _parts() if is_train else {},
            "defaults": _defaults() if is_train else {},
        }
    student = dict.fromkeys(options_of_students(), ())
    fields = table["train"]["options"]
    table["train"]["options"] = {name: fields[name] for name in fields if name not in student}
    return table


def options_of_students() -> set[str]:
    """Return the options that some kind of student brings."""
    return {
        option
        for name in own_names(STUDENTS)
        for option in known_options(TRAIN, ["--student", name])
        if option.startswith("--student.")
    }


def own_names(registry: Registry[Any]) -> list[str]:
    """Return the names of this project's own parts."""
    return [name for name in registry if registry.origin_of(registry[name]) is None]


def _parts() -> dict[str, dict[str, object]]:
    parts = {
        f"--{kind}": {name: _own(f"--{kind}.", [f"--{kind}", name]) for name in own_names(registry)}
        for kind, registry in REGISTRIES.items()
    }
    for option, (agent, values) in AGENT_OF_VARIANT.items():
        parts[option] = {
            value: _own("--agent.", ["--agent", agent, option, value]) for value in values
        }
    return parts


def _own(prefix: str, words: list[str]) -> dict[str, list[str]]:
    """Return the options with a prefix that `words` bring."""
    options = known_options(TRAIN, words)
    return _sorted({name: each for name, each in options.items() if name.startswith(prefix)})


def _defaults() -> dict[str, str]:
    default, _ = TRAIN.load_defaults([])
    choice = default.choice
    return {"--agent": choice.agent, "--task": choice.task, "--student": choice.student}


def _sorted(options: dict[str, Iterable[str]], without: tuple[str, ...] = ()) -> dict[str, list]:
    names = sorted(name for name in options if not name.startswith(without or (" ",)))
    return {name: sorted(options[name]) for name in names}  # tyro's choices have no order


def main() -> None:
    """Write the table."""
    TABLE.write_text(json.dumps(option_names(), indent=1) + "\n")


if __name__ == "__main__":
    main()
