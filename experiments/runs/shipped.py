"""Paths of files that come with the project, named alike wherever it is installed."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PREFIX = "textgen_experiments:"


def portable_name(path: Path) -> str:
    """Return the name of `path` for a file: relative to this package for what comes with it."""
    if path.is_relative_to(PACKAGE):
        return PREFIX + path.relative_to(PACKAGE).as_posix()
    return str(path)


def path_of_name(name: str) -> Path:
    """Return the path that `portable_name` gave `name`."""
    if name.startswith(PREFIX):
        return PACKAGE / name.removeprefix(PREFIX)
    return Path(name)
