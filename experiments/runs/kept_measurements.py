"""Measurements of this machine, kept in the user's cache directory.

They hold for one processor and one version of PyTorch. What is missing from the file, or cannot be
understood, is measured anew, so that it can be removed at any time.
"""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from textgen_env.files import WriteError
from textgen_experiments.runs.folder import write_text
from textgen_experiments.runs.kinds import check_kinds
from textgen_experiments.runs.progress import tell

CACHE = "TEXTGEN_CACHE"  # variable of the environment that names another folder
FILE = "measurements.json"
CPU_INFO = Path("/proc/cpuinfo")

RecordT = TypeVar("RecordT")


def measured_once(name: str, kind: type[RecordT], measure: Callable[[], RecordT]) -> RecordT:
    """Return what was measured on this machine before, or else measure it and keep it.

    Args:
        name: says what is measured, with all that it depends on beside the machine.
        kind: dataclass of numbers and names.
        measure: returns one of them.
    """
    path = cache_folder() / FILE
    kept = _of_machine(_read(path)).get(name)
    try:
        record = kind(**cast("dict[str, Any]", kept))  # a TypeError unless it is one
        check_kinds(record)
    except TypeError:
        record = measure()
        _keep(path, name, record)
    return record


def cache_folder() -> Path:
    """Return the folder of what this program keeps for the user, which may be missing."""
    if named := os.environ.get(CACHE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "textgen"


def machine() -> str:
    """Return the processor's model and the version of PyTorch."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(models, "") or platform.processor() or platform.machine()
    return f"{processor}, torch {torch.__version__}"


def _keep(path: Path, name: str, record: Any) -> None:  # noqa: ANN401 - any dataclass
    """Add a record to the file, which another process may have written meanwhile."""
    kept = _read(path)
    kept[machine()] = {**_of_machine(kept), name: asdict(record)}
    try:
        write_text(path, json.dumps(kept, indent=1) + "\n")
    except WriteError as error:
        tell(f"the measurement is made again next time: {error}")


def _read(path: Path) -> dict[str, Any]:
    """Return the content of the file; nothing if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _of_machine(content: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements of this machine by their names."""
    own = content.get(machine())
    return own if isinstance(own, dict) else {}
