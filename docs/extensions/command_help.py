"""Directives that show what `textgen --help` says when the site is built.

`command-line` has a section for every command, `agent-options NAME...` the options that an
algorithm brings to `textgen train`. The body of the latter is the commands that print them, for
those who read the page as Markdown.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import textgen_experiments
from textgen_experiments.cli import main
from textgen_experiments.command_line.commands import COMMANDS

WIDTH = "100"  # columns: frames stand beside each other where there are more
FRAME = "│╭╰╮╯─ "
HERE = re.compile(re.escape(str(Path(textgen_experiments.__file__).parent)).replace(r"\-", r"-\s?"))
"""The folder of the program on this machine, which may be wrapped at a hyphen."""


@dataclass
class OptionGroup:
    """Options of one frame of the help, with the frame's title and introduction."""

    title: str
    introduction: list[str] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)

    def read(self, text: str, *, is_indented: bool) -> None:
        """Add a line of the frame: an option, more of its name, or more of its explanation."""
        if text.startswith("-") or (self.title.startswith("positional") and not is_indented):
            name, *said = re.split(r"\s{2,}", text, maxsplit=1)
            self.options.append((name, "".join(said)))
        elif self.options:
            name, said = self.options[-1]
            if said or is_indented:
                self.options[-1] = (name, f"{said} {text}".strip())
            else:
                self.options[-1] = (name + text, "")
        else:
            self.introduction.append(text)


def help_lines(words: list[str]) -> list[str]:
    """Return the lines that `textgen WORDS --help` prints."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # frames are drawn in UTF-8 alone
    with (
        mock.patch.dict(os.environ, {"COLUMNS": WIDTH}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*words, "--help"])
    printed.seek(0)
    return printed.read().splitlines()


def option_groups(words: list[str]) -> Iterator[OptionGroup]:
    """Yield the frames of the help of `textgen WORDS`."""
    group = OptionGroup("")
    for line in help_lines(words):
        text = line.strip(FRAME)
        if line.startswith("╭"):
            group = OptionGroup(text.removesuffix("options").strip())
        elif line.startswith("╰"):
            yield group
        elif line.startswith("│"):
            group.read(text, is_indented=line.startswith("│  "))


def prose(text: str) -> list[nodes.Node]:
    """Return `text` with what stands in backticks as code."""
    parts = re.split(r"`([^`]+)`", text)
    made = [
        nodes.literal(part, part) if index % 2 else nodes.Text(part)
        for index, part in enumerate(parts)
    ]
    return [node for node in made if node.astext()]


def definition_list(options: list[tuple[str, str]]) -> nodes.definition_list:
    """Return a list with each option as a term and its explanation below it."""
    made = nodes.definition_list()
    for name, said in options:
        term = nodes.term("", "", nodes.literal(name, name))
        explained = HERE.sub("experiments", said)
        made += nodes.definition_list_item(
            "", term, nodes.definition("", nodes.paragraph("", "", *prose(explained)))
        )
    return made


def introduction(group: OptionGroup) -> list[nodes.Node]:
    """Return the paragraphs above the options of a group."""
    paragraphs = "\n".join(group.introduction).strip().split("\n\n")
    return [nodes.paragraph("", "", *prose(" ".join(each.split()))) for each in paragraphs if each]


def shown(group: OptionGroup) -> list[nodes.Node]:
    """Return the title, the introduction and the options of a group."""
    made: list[nodes.Node] = []
    if group.title:
        made.append(nodes.rubric(group.title, f"{group.title} options"))
    made += introduction(group)
    options = [option for option in group.options if option[0] != "-h, --help"]
    return [*made, definition_list(options)] if options else made


class CommandLine(Directive):
    """A section for every command of the program."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        return [self.section(command.name) for command in COMMANDS]

    def section(self, name: str) -> nodes.section:
        """Return what `textgen NAME --help` says."""
        made = nodes.section(ids=[f"textgen-{name}"], names=[f"textgen-{name}"])
        made += nodes.title("", "", nodes.literal("", f"textgen {name}"))
        lines = help_lines([name])
        described = lines[1 : next(i for i, line in enumerate(lines) if line.startswith("╭"))]
        for paragraph in "\n".join(described).strip().split("\n\n"):
            made += nodes.paragraph("", "", *prose(" ".join(paragraph.split())))
        for group in option_groups([name]):
            made += shown(group)
        return made


class AgentOptions(Directive):
    """The options of `textgen train --agent NAME`, for each NAME."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a list for each agent, under its name where there are several."""
        names, made = self.arguments[0].split(), []
        for name in names:
            groups = [
                group
                for group in option_groups(["train", "--agent", name])
                if group.title.split(".")[0] == "agent"
            ]
            command = f"textgen train --agent {name}"
            made.append(nodes.paragraph("", "", nodes.literal(command, command)))
            if not any(group.options for group in groups):
                made.append(nodes.paragraph("", "No options of its own."))
            for group in groups:
                if group.title != "agent":
                    made += introduction(group)
                if group.options:
                    made.append(definition_list(group.options))
        return made


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("command-line", CommandLine)
    app.add_directive("agent-options", AgentOptions)
    return {"parallel_read_safe": True}
