"""Digests of all that a run reads from outside its folder: data, teacher, student and tokenizer.

`config.json` keeps them, because a path says nothing about the content. A file that is gone is left
to the reader that misses it. Left out: data sets on the hub, which `revision` pins.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from hashlib import file_digest
from pathlib import Path

from textgen_env.models.huggingface.load import PretrainedError, local_folder
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.shipped import portable_name

MODEL_FILES = {".safetensors", ".bin", ".json", ".txt", ".model", ".jinja"}


class ChangedFileError(ValueError):
    """A file that a run was trained with and that has other content now."""


def outside_digests(experiment: Experiment) -> dict[str, str]:
    """Return the SHA-256 of each file that `experiment` names, by the path that it is named by."""
    digests = {}
    for name, path in _outside_files(experiment):
        with path.open("rb") as file:
            digests[name] = file_digest(file, "sha256").hexdigest()
    return digests


def check_unchanged(folder: Path, experiment: Experiment, digests: Mapping[str, str]) -> None:
    """Raise if a file that the run in `folder` reads is not the one that it began with.

    Args:
        folder: the run's folder, for the message.
        experiment: the run's experiment.
        digests: what `outside_digests` said when it began; empty for runs of before it was kept.

    Raises:
        ChangedFileError: a file has other content, is new in a model's folder, or is gone from it.
    """
    if not digests:
        return
    found, roots = outside_digests(experiment), _roots(experiment)
    there = [
        portable_name(name)
        for name, is_model in roots
        if (_on_disk(name) if is_model else name).exists()
    ]
    for name in sorted(found.keys() | digests.keys()):
        belongs = any(name == root or name.startswith(f"{root}/") for root in there)
        if belongs and found.get(name) != digests.get(name):
            raise ChangedFileError(
                f"{name} must be as it was when the run in {folder} began, got "
                f"{_change(name, found, digests)}: put it back, or train in another folder"
            )


def _change(name: str, found: Mapping[str, str], digests: Mapping[str, str]) -> str:
    if name not in found:
        return "none"
    return "a new file" if name not in digests else "other content"


def _on_disk(name: Path) -> Path:
    """Return the folder on this disk of a model on the hub, and other paths as they are."""
    try:
        return local_folder(name)
    except PretrainedError:
        return name


def _outside_files(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    """Yield each file with the path that the experiment leads to it by."""
    for named, is_model in _roots(experiment):
        root = _on_disk(named) if is_model else named
        if root.is_file():
            yield portable_name(named), root
        for path in (
            sorted(root.iterdir() if is_model else root.rglob("*")) if root.is_dir() else ()
        ):
            if path.is_file() and (not is_model or path.suffix in MODEL_FILES):
                yield portable_name(named / path.relative_to(root)), path


def _roots(experiment: Experiment) -> list[tuple[Path, bool]]:
    """Return the files and folders that an experiment names; True for those of models."""
    server = experiment.server
    models = (
        experiment.teacher,
        server and server.tokenizer,
        experiment.student_init,
        experiment.student_tokenizer,
    )
    data = [(path, False) for path in _paths_in(experiment.task)]
    return [*data, *((Path(path), True) for path in models if path)]


def _paths_in(value: object, name: str = "") -> Iterator[Path]:
    """Yield the paths in a configuration; a string may be one in a field of that name."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, str) and name == "path":
        yield Path(value)
    elif isinstance(value, tuple):
        for item in value:
            yield from _paths_in(item)
    elif is_dataclass(value):
        for each in fields(value):
            if each.compare:  # what is not compared may change
                yield from _paths_in(getattr(value, each.name), each.name)
