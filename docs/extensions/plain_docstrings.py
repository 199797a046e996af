"""Docstrings of this project read as plain text with code in backticks.

They hold formulas such as `KL(p || m)`, lists right below a sentence and tables made of spaces,
which reStructuredText takes for other markup or for a mistake. Before Google's sections are made of
a docstring its text is escaped, lists are set apart, and an indented block becomes one of code.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

import textgen_experiments

MARKUP = re.compile(r"[|*]|(?<=\w)_(?!\w)")
CODE = re.compile(r"(``?[^`]+``?)")
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):$")
ITEM = re.compile(r"- ")
HERE = str(Path(textgen_experiments.__file__).parent)


def escaped(line: str) -> str:
    """Return `line` with every character of markup that is not within backticks escaped."""
    parts = CODE.split(line)
    made = [part if index % 2 else MARKUP.sub(r"\\\g<0>", part) for index, part in enumerate(parts)]
    ends = [index for index in range(2, len(made), 2) if re.match(r"\w", made[index])]
    for index in ends:  # as in `Name`s
        made[index] = "\\ " + made[index]
    return "".join(made)


def readable(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText that shows them as they are meant."""
    made: list[str] = []
    in_section = in_block = in_item = False
    for line in lines:
        is_indented, before = line.startswith(" "), made[-1] if made else ""
        if line and not is_indented:
            in_section, in_block = bool(SECTION.match(line)), False
            if ITEM.match(line) and before and not in_item:
                made.append("")
            in_item = bool(ITEM.match(line))
        is_text = not is_indented or in_section or in_item
        if is_text or in_block:
            made.append(escaped(line) if is_text else line)
        elif before:  # the second line of `Source: ...`
            made[-1] = f"{before} {escaped(line.strip())}"
        else:
            made += ["::", "", line]
            in_block = True
    return made


def rewrite_docstring(_app: Sphinx, _what: str, _name: str, *details: object) -> None:
    """Rewrite the lines of a docstring in place."""
    lines = details[-1]
    assert isinstance(lines, list), "the last argument of the event"
    lines[:] = readable(lines)


def without_this_machine(
    _app: Sphinx, _what: str, _name: str, *details: object
) -> tuple[str, str | None] | None:
    """Return a signature and its result with paths to the program's files as in the repository."""
    *_, signature, result = details
    if not isinstance(signature, str):
        return None
    assert result is None or isinstance(result, str), "the last argument of the event"
    return signature.replace(HERE, "experiments"), result


def setup(app: Sphinx) -> dict[str, bool]:
    """Let docstrings be rewritten before napoleon, whose priority is 500, reads them."""
    app.connect("autodoc-process-docstring", rewrite_docstring, priority=100)
    app.connect("autodoc-process-signature", without_this_machine)
    return {"parallel_read_safe": True}
