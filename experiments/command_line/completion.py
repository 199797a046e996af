"""Completion of commands, options and their values by the Tab key, in bash and zsh.

The shell asks the program at each Tab, because the options of `train` depend on the words before.
"""

from collections.abc import Sequence

from textgen_experiments.command_line.commands import find_command, with_hyphen
from textgen_experiments.command_line.common import DEVICE, DEVICES, NAMES
from textgen_experiments.command_line.table import NUMBER_WORDS, commands_by_name

COMPLETE = "--complete"
COMMON = {**dict.fromkeys(NAMES, ()), DEVICE: DEVICES}
BASH = f"""\
_textgen() {{
    local IFS=$'\\n'
    COMPREPLY=($(textgen {COMPLETE} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null))
}}
complete -o default -F _textgen textgen
"""
ZSH = f"""\
#compdef textgen
_textgen() {{
    local -a found
    found=("${{(@f)$(textgen {COMPLETE} "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}")
    if [[ -n "${{found[1]}}" ]]; then
        compadd -- "${{found[@]}}"
    else
        _files
    fi
}}
compdef _textgen textgen
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH}


def completions(words: Sequence[str]) -> list[str]:
    """Return what the last word may become, nothing where files may follow.

    Args:
        words: the command line without the program, up to the cursor; the last may be empty.
    """
    *before, begun = words or [""]
    if not before:
        return [name for name in [*commands_by_name(), "completion"] if name.startswith(begun)]
    name, *rest = with_hyphen(list(before))
    if name == "completion":
        return [shell for shell in SCRIPTS if shell.startswith(begun)]
    if find_command(name) is None:
        return []
    options = {**COMMON, **commands_by_name()[name].options_with(rest)}
    values = [value for value in options.get(before[-1], ()) if value not in NUMBER_WORDS]
    candidates = values or (options if begun.startswith("-") else ())
    return [each for each in candidates if each.startswith(begun)]
