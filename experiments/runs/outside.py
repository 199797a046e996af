"""Digests of all that a run reads from outside its folder: data, teacher, student and tokenizer.

`config.json` keeps them, because a path says nothing about the content. A task says itself what it
reads (`TaskConfig.outside_files`, `outside_digests`). What is gone is left to the reader that
misses it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from textgen_env.digests import content_digest
from textgen_env.models.huggingface.load import PretrainedError, local_folder
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.shipped import portable_name

MODEL_FILES = {".safetensors", ".bin", ".json", ".txt", ".model", ".spm", ".jinja"}
SHOWN = 12  # characters of a digest in a message


class ChangedFileError(ValueError):
    """A file or data set that a run was trained with and that has other content now."""


class OutsideRoot(NamedTuple):
    """A file or folder that an experiment names.

    Attributes:
        name: the name by which messages and `config.json` know it.
        path: its place on this disk.
        is_model: True for a model's folder, of which only the files beside its weights count.
    """

    name: str
    path: Path
    is_model: bool


def outside_digests(experiment: Experiment) -> dict[str, str]:
    """Return the digest of all that `experiment` reads, by the name that it is known by.

    Of files it is the SHA-256, of other things what their task says.
    """
    digests = {name: content_digest(path) for name, path in _outside_files(_roots(experiment))}
    return {**digests, **experiment.task.outside_digests()}


def check_unchanged(folder: Path, experiment: Experiment, digests: Mapping[str, str]) -> None:
    """Raise if what the run in `folder` reads is not what it began with.

    Args:
        folder: the run's folder, for the message.
        experiment: the run's experiment.
        digests: what `outside_digests` said when it began; empty for runs of before it was kept.

    Raises:
        ChangedFileError: a file or data set has other content, or a file is new in a folder or gone
            from it.
    """
    if not digests:
        return
    found = outside_digests(experiment)
    folders = [f"{root.name}/" for root in _roots(experiment) if root.path.is_dir()]
    for name in sorted(found.keys() | digests.keys()):
        is_comparable = name in found.keys() & digests.keys()
        if not is_comparable and not name.startswith(tuple(folders)):
            continue
        if found.get(name) != digests.get(name):
            raise ChangedFileError(
                f"{name} must be as it was when the run in {folder} began, got "
                f"{_change(name, found, digests)}: put it back, or train in another folder"
            )


def _change(name: str, found: Mapping[str, str], digests: Mapping[str, str]) -> str:
    if name not in found:
        return "none"
    if name not in digests:
        return "a new file"
    return f"other content ({found[name][:SHOWN]}, not {digests[name][:SHOWN]})"


def check_models(experiment: Experiment) -> None:
    """Raise unless all models that the settings name are on this disk or can be fetched.

    Raises:
        PretrainedError: one is not; its setting is named.
    """
    for setting, path in _named_models(experiment):
        local_folder(path, setting)


def _on_disk(name: Path) -> Path:
    """Return the folder on this disk of a model on the hub, and other paths as they are."""
    try:
        return local_folder(name)
    except PretrainedError:
        return name


def _outside_files(roots: list[OutsideRoot]) -> Iterator[tuple[str, Path]]:
    """Yield each file with the name that leads to it."""
    for name, root, is_model in roots:
        if root.is_file():
            yield name, root
        for path in (
            sorted(root.iterdir() if is_model else root.rglob("*")) if root.is_dir() else ()
        ):
            if path.is_file() and (not is_model or path.suffix in MODEL_FILES):
                yield (Path(name) / path.relative_to(root)).as_posix(), path


def _roots(experiment: Experiment) -> list[OutsideRoot]:
    """Return the files and folders that an experiment names."""
    files = experiment.task.outside_files()
    if experiment.black_box_texts:
        files = {**files, experiment.black_box_texts.as_posix(): experiment.black_box_texts}
    return [
        *(OutsideRoot(name, path, is_model=False) for name, path in files.items()),
        *(
            OutsideRoot(portable_name(path), _on_disk(path), is_model=True)
            for _, path in _named_models(experiment)
        ),
    ]


def _named_models(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    """Yield each model that an experiment begins with, after the setting that names it."""
    server = experiment.server
    named = [
        ("teacher", experiment.teacher),
        *(("keyed_teachers", path) for _, path in experiment.keyed_teachers),
        *(("further_teachers", path) for path in experiment.further_teachers),
        ("server.tokenizer", server and server.tokenizer),
        ("student_init", experiment.student_init),
        ("student_tokenizer", experiment.student_tokenizer),
    ]
    return ((setting, path) for setting, path in named if path)
