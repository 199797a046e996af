"""Registries of parts by name, open to other packages and to scripts.

There is one for each kind of part: `AGENTS`, `TASKS` and `STUDENTS`. An entry is a class, or a
configuration that stands for its class. Three ways lead in:

- a call of `register`, in a file of this project or in a script,
- the same call in a plugin, a module or file that `load_plugin` imports,
- an entry point of an installed package, which is imported once its name is asked for.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from pathlib import Path
from pkgutil import iter_modules
from traceback import extract_tb
from typing import TypeVar, cast

Entry = TypeVar("Entry")

OWN_PACKAGES = ("textgen_env", "textgen_agents", "textgen_experiments")

plugins: list[str] = []
"""Plugins that were imported, as they were named."""
_in_progress: list[str] = []
"""Plugins that are being imported, the innermost last."""


class RegistryError(ValueError):
    """A part that is not registered, or that cannot be."""


class MissingPluginError(ValueError):
    """A file that names a part of a plugin that is not loaded.

    Args:
        path: the file.
        plugin: the module, file or distribution that it needs.
    """

    def __init__(self, path: Path, plugin: str) -> None:
        super().__init__(path, plugin)  # as they are, so that it can be pickled
        self.path, self.plugin = path, plugin

    def __str__(self) -> str:
        return f"{self.path} needs the plugin {self.plugin}, which is not loaded"


class Registry(Mapping[str, Entry]):
    """Entries of one kind by name, in the order in which they were registered.

    Args:
        name: the variable that holds it, for messages.
        kind: the word for an entry, for messages.
        group: the group of the entry points that other packages declare.
        base: the class that the classes of all entries derive from.
        of_classes: True if entries are classes, False if they are configurations.
    """

    def __init__(self, name: str, kind: str, group: str, base: type, *, of_classes: bool) -> None:
        self.name, self.kind, self.group = name, kind, group
        self.base, self.of_classes = base, of_classes
        self._entries: dict[str, Entry] = {}
        self._origins: dict[type, str] = {}
        self._watchers: list[Callable[[str], object]] = []

    def register(self, name: str, entry: Entry) -> None:
        """Add `entry` under `name`; the same entry may be added again.

        Raises:
            RegistryError: `name` is no identifier or is taken by something else, or the entry is of
                another kind.
        """
        self._check(name, entry)
        listed = name in self._entries
        self._entries[name] = entry
        self._origins.setdefault(class_of(entry), _origin(class_of(entry)))
        if not listed:
            for watcher in self._watchers:
                watcher(name)

    __setitem__ = register

    def watch(self, watcher: Callable[[str], object]) -> None:
        """Call `watcher` with each name, those that are registered later included."""
        for name in self:
            watcher(name)
        self._watchers.append(watcher)

    def __getitem__(self, name: str) -> Entry:
        """Return the entry; import it if it is an entry point.

        Raises:
            RegistryError: its entry point cannot be imported.
        """
        if name not in self._entries and name in self._declared:
            self._load(self._declared[name])
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names; no entry point is imported for it."""
        return iter({**self._entries, **self._declared})

    def __len__(self) -> int:
        return len({**self._entries, **self._declared})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._declared

    def loaded(self) -> list[Entry]:
        """Return the entries that need no import."""
        return list(self._entries.values())

    def load(self, distributions: Iterable[str]) -> None:
        """Import the entry points of these distributions."""
        for point in self._declared.values():
            if _distribution(point) in distributions:
                self._load(point)

    def name_of(self, entry: object) -> str:
        """Return the first name under which the class of `entry` is registered.

        Raises:
            RegistryError: it is not registered.
        """
        kind = class_of(entry)
        self._load_package(kind.__module__.split(".")[0])
        for name, known in self._entries.items():
            if class_of(known) is kind:
                return name
        added = kind.__name__ if self.of_classes else f"{kind.__name__}(...)"
        raise RegistryError(
            f"{self.kind} must be registered, got a {kind.__name__}: call "
            f'{self.name}.register("name", {added}) in the file that defines it'
        )

    def origin_of(self, entry: object) -> str | None:
        """Return the plugin, file or distribution that registered the class of `entry`.

        None for a part of this project, and for a class that is not registered.
        """
        kind = class_of(entry)
        package = kind.__module__.split(".")[0]
        self._load_package(package)
        return None if package in OWN_PACKAGES else self._origins.get(kind)

    @cached_property
    def _declared(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages by name, without those whose name is taken."""
        declared: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            taker = self._taker(point, declared.get(point.name))
            if taker is None:
                declared[point.name] = point
            else:
                warnings.warn(
                    f"{self.kind} {point.name} of the distribution {_distribution(point)} is left "
                    f"out: the name is taken by {taker}; rename its entry point",
                    stacklevel=2,
                )
        return declared

    def _taker(self, point: EntryPoint, other: EntryPoint | None) -> str | None:
        """Return the other owner of the entry point's name, or None if there is none."""
        if other is not None and other.value != point.value:
            return f"{other.value} of {_distribution(other)}"
        if point.name not in self._entries:
            return None
        known = class_of(self._entries[point.name])
        same = known.__module__.split(".")[0] == point.module.split(".")[0]
        return None if same else _path_of(known)

    def _load_package(self, package: str) -> None:
        """Import the entry points that lie in `package`."""
        for point in self._declared.values():
            if point.module.split(".")[0] == package:
                self._load(point)

    def _load(self, point: EntryPoint) -> None:
        """Import the entry point and add its entry, unless its name has one.

        Raises:
            RegistryError: it cannot be imported, or is of another kind.
        """
        if point.name in self._entries:
            self._origins[class_of(self._entries[point.name])] = _distribution(point)
            return
        try:
            loaded = point.load()
            made = isinstance(loaded, type) and not self.of_classes
            entry = cast("Entry", loaded() if made else loaded)
        except Exception as error:  # of whatever another package does when it is imported
            raise RegistryError(
                f"{self.kind} {point.name} of the distribution {_distribution(point)} must be "
                f"importable, got {error!r}: repair or uninstall it"
            ) from error
        if point.name not in self._entries:  # its module may have registered it
            self._check(point.name, entry)
            self._entries[point.name] = entry
        self._origins[class_of(entry)] = _distribution(point)

    def _check(self, name: str, entry: Entry) -> None:
        """Raise `RegistryError` unless `entry` can be added under `name`."""
        if not name.isidentifier():
            raise RegistryError(f"name must be an identifier, got {name!r}")
        if isinstance(entry, type) != self.of_classes or not issubclass(class_of(entry), self.base):
            form = "a class that derives" if self.of_classes else "a configuration whose class is"
            raise RegistryError(
                f"{self.kind} {name} must be {form} from {self.base.__name__}, got {entry!r}"
            )
        if isinstance(entry, type):
            self._check_class(name, entry)
        known = self._entries.get(name)
        if known is not None and known != entry:
            raise RegistryError(
                f"{self.kind} must have a name of its own, got {name!r}, which is taken by "
                f"{_path_of(class_of(known))}: choose another name"
            )

    def _check_class(self, name: str, kind: type) -> None:
        """Raise `RegistryError` unless a class can be made without arguments."""
        if isabstract(kind):
            missing = ", ".join(sorted(kind.__abstractmethods__))
            raise RegistryError(f"{self.kind} {name} must define {missing}, got {kind.__name__}")
        without = [
            each.name
            for each in (fields(kind) if is_dataclass(kind) else ())
            if each.init and each.default is MISSING and each.default_factory is MISSING
        ]
        if without:
            raise RegistryError(
                f"{self.kind} {name} must have a default for each field, got {kind.__name__} with "
                f"none for {', '.join(without)}"
            )


def load_plugin(plugin: str) -> None:
    """Import a module or file that registers parts, with the working directory on the path.

    Args:
        plugin: a module's name, or a file that ends in ".py".

    Raises:
        RegistryError: it cannot be imported, or another module has the file's name.
    """
    if plugin in plugins:
        return
    file = Path(plugin).resolve() if plugin.endswith(".py") else None
    folder = str(file.parent if file else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    if file and not file.is_file():
        raise RegistryError(f"plugin {plugin} must be a file that is there, got none: {file}")
    _in_progress.append(plugin)
    try:
        module = import_module(file.stem if file else plugin)
    except Exception as error:  # of whatever the plugin does
        place = _line_of(error, file)
        raise RegistryError(f"plugin {plugin}{place} must be importable, got {error!r}") from error
    finally:
        _in_progress.pop()
    if file and Path(module.__file__ or "").resolve() != file:
        raise RegistryError(
            f"plugin {plugin} must have a name that no other module has, got that of "
            f"{module.__file__ or module.__name__}: rename the file"
        )
    plugins.append(plugin)


def _line_of(error: Exception, file: Path | None) -> str:
    """Return the last line of `file` that an error came through, in words; else nothing."""
    frames = [
        frame.lineno
        for frame in extract_tb(error.__traceback__)
        if file and Path(frame.filename) == file
    ]
    return f", line {frames[-1]}," if frames else ""


def load_plugins(names: Iterable[str]) -> None:
    """Import several plugins, as `load_plugin` does."""
    for name in names:
        load_plugin(name)


def import_all(package: str, folder: Iterable[str]) -> None:
    """Import every module of a package, so that each registers what it defines.

    Args:
        package: its name.
        folder: its `__path__`; packages within it are left out.
    """
    for module in iter_modules(folder):
        if not module.ispkg and module.name != "__main__":
            import_module(f"{package}.{module.name}")


def class_of(entry: object) -> type:
    """Return `entry` itself if it is a class, else its class."""
    return entry if isinstance(entry, type) else type(entry)


def _origin(kind: type) -> str:
    """Return the plugin that is registering `kind`, or the program or module that it is from."""
    if _in_progress:
        return _in_progress[-1]
    program = getattr(sys.modules[kind.__module__], "__file__", None)
    if kind.__module__ not in ("__main__", "__mp_main__") or program is None:
        return kind.__module__
    path = Path(program).resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module
