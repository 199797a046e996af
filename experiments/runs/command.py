"""The command that a run began with, for its reader."""

import shlex
import sys
from pathlib import Path

MODULE = "__main__.py"


def this_command() -> str:
    """Return the command line of this process as a shell reads it, without the program's folder.

    Processes that a command starts for its runs have that command's line.
    """
    program, *words = sys.argv
    name = Path(program).name
    began = ["python", "-m", Path(program).parent.name] if name == MODULE else [name]
    return shlex.join([*began, *words])
