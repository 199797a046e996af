"""Folders of runs as a pattern of the shell gives them, with files of this program among them."""

from collections.abc import Sequence
from pathlib import Path

from textgen_experiments.evaluation.results import RESULTS
from textgen_experiments.runs.plan import PLAN
from textgen_experiments.runs.progress import tell

BESIDE_RUNS = {RESULTS, PLAN, "report.html", "tables.md", "curve.png"}
LOG = ".log"


def without_own_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return `paths` without the files that commands write beside runs, and tell which.

    Args:
        paths: such as a shell makes of `runs/*`. They stay as they are if none is a folder.
    """
    left = [
        path
        for path in paths
        if path.is_file() and (path.name in BESIDE_RUNS or path.suffix == LOG)
    ]
    if not left or not any(path.is_dir() for path in paths):
        return tuple(paths)
    tell(f"left out, as no runs: {', '.join(map(str, left))}")
    return tuple(path for path in paths if path not in left)
