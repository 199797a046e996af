"""Folder of a run, and its configuration written and read.

`config.json` (the resolved experiment, versions, precision), `metrics.jsonl`, TensorBoard events,
`checkpoints/`, `model/` (the best weights with their tokenizer) and `results.json`.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from textgen_agents import AGENTS
from textgen_env.files import PARTIAL, write_atomically
from textgen_env.models import STUDENTS
from textgen_env.models.storage import load_tokenizer
from textgen_env.registry import MissingPluginError, plugins
from textgen_env.tasks import TASKS
from textgen_env.tokenizers.subword import same_pieces
from textgen_experiments.runs.experiment import Experiment, plugins_of
from textgen_experiments.runs.kinds import check_kinds
from textgen_experiments.runs.outside import check_unchanged
from textgen_experiments.runs.records import UnknownRecordError, from_json, to_json
from textgen_experiments.runs.shipped import portable_name

CONFIG = "config.json"
OUTCOME = "outcome.json"
CELL = "cell.json"  # of a run that is a cell of a plan, once it is done
CHECKPOINTS = "checkpoints"
LOCK = ".lock"  # held by the command that writes to the folder
PACKAGES = ("torch", "gymnasium", "tokenizers", "accelerate", "sacrebleu")
BAD_CONTENT = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    RecursionError,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

RecordKind = TypeVar("RecordKind")
Leaf = bool | int | float | str
"""A value of a configuration that holds no others."""


class RunError(ValueError):
    """A run's folder that cannot be used as asked."""


@dataclass(frozen=True)
class Run:
    """Content of a run's `config.json`.

    Attributes:
        experiment: the resolved experiment.
        precision: name of the dtype of autocast and of inference.
        onednn: whether float32 products on CPUs go through oneDNN.
        digests: of the files from outside that it began with, by path; empty in older runs.
    """

    experiment: Experiment
    precision: str
    onednn: bool
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `precision` names."""
        return DTYPES[self.precision]


def contents(folder: Path) -> set[str]:
    """Return the names in a run's folder, none if it is missing, without what a kill left.

    Raises:
        RunError: there is a file in its place.
    """
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise RunError(f"{folder} must be a folder, got a file: choose another name")
    return {path.name for path in folder.iterdir()} - {CONFIG + PARTIAL, LOCK}


def write_config(folder: Path, run: Run, extra: Mapping[str, object]) -> None:
    """Write `config.json`; `extra` is kept beside the experiment for the reader, not read back.

    Raises:
        WriteError: the folder cannot be written.
        ValueError: JSON does not keep a setting, or its class is that of no registered part.
    """
    experiment = to_json(run.experiment)
    from_json(experiment)  # a run that nobody could read is refused now
    content = {
        "experiment": experiment,
        "precision": run.precision,
        "onednn": run.onednn,
        "digests": dict(run.digests),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": _commit(),
        **extra,
    }
    if used := plugins_of(run.experiment):
        content["plugins"] = used
    write_text(folder / CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def change_config(folder: Path, experiment: Experiment) -> None:
    """Write other settings to the run in `folder`, and keep the number of updates it had before.

    Raises:
        WriteError: the folder cannot be written.
    """
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    before = content["experiment"]["learner"]["updates"]
    content["experiment"] = to_json(experiment)
    content["extended_after"] = [*content.get("extended_after", ()), before]
    write_text(folder / CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_config(folder: Path) -> Run:
    """Return the configuration of the run in `folder`.

    Raises:
        RunError: there is no run there, or its `config.json` cannot be understood.
        MissingPluginError: a part of it is of a plugin that is not loaded.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(
            f"run must be a folder with a config.json, got {folder}{runs_within(folder)}"
        )
    needed: Sequence[str] = ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        experiment, needed = content["experiment"], list(map(str, content.get("plugins", ())))
        for registry in (AGENTS, TASKS, STUDENTS):
            registry.load(needed)
        digests = {
            portable_name(Path(path)): str(digest)
            for path, digest in content.get("digests", {}).items()
        }
        run = Run(from_json(experiment), content["precision"], content["onednn"], digests)
        check_kinds(run)
        if run.precision not in DTYPES:
            raise ValueError(f"precision must be one of {[*DTYPES]}, got {run.precision!r}")
    except UnknownRecordError as error:
        raise _missing(path, needed, error) from error
    except BAD_CONTENT as error:
        raise RunError(f"{path} must be a run's configuration, got: {error!r}") from error
    return run


def read_record(path: Path, kind: type[RecordKind]) -> RecordKind:
    """Return the record of plain values in a JSON file of a run.

    Raises:
        RunError: the file cannot be understood.
    """
    try:
        record = kind(**json.loads(path.read_text(encoding="utf-8")))
        check_kinds(record)
    except BAD_CONTENT as error:
        raise RunError(f"{path} must hold a run's {kind.__name__}, got: {error!r}") from error
    return record


def read_unchanged(folder: Path) -> Run:
    """Return the configuration of the run in `folder`, whose files from outside are as they were.

    Raises:
        RunError, MissingPluginError: as `read_config`.
        ChangedFileError: a data file, teacher, student or tokenizer has other content now.
    """
    run = read_config(folder)
    check_unchanged(folder, run.experiment, run.digests)
    return run


def _missing(path: Path, needed: Sequence[str], error: UnknownRecordError) -> ValueError:
    """Return the error of a file with a record that no registry knows."""
    for plugin in needed:
        if plugin not in plugins:
            return MissingPluginError(path, plugin)
    return RunError(f"{path} must be a run's configuration, got: {error!r}")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the configurations of runs for one table.

    Raises:
        RunError: there is none, or they differ in the kind of their task or in the teacher, be it
            here or on a server.
        ChangedFileError: a file that one of them was trained with has other content now.
    """
    if not folders:
        raise RunError("runs must be at least one folder, got none")
    runs = [read_unchanged(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        check_same_parts("table", (folders[0], runs[0]), (folder, run))
    return runs


def check_same_parts(place: str, first: tuple[Path, Run], other: tuple[Path, Run]) -> None:
    """Raise `RunError` where two runs have tasks of different kinds, or different teachers.

    Args:
        place: what they are to stand in together, such as "table".
        first: a run with its folder.
        other: another one.
    """
    parts = [
        {
            "task": TASKS.name_of(run.experiment.task),
            "teacher": run.experiment.teacher,
            "server": run.experiment.server,
        }
        for _, run in (first, other)
    ]
    for name, wanted in parts[0].items():
        if wanted != (found := parts[1][name]):
            raise RunError(
                f"runs in one {place} must have the same {name} as {first[0]}, got {other[0]} with "
                f"{found} in place of {wanted}: give them apart (a teacher's row comes by itself)"
            )


def runs_within(folder: Path) -> str:
    """Return a remedy that names the runs in a folder of several, as a plan's is; else nothing."""
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not runs:
        return ""
    more = f" or another of its {len(runs)} runs" if len(runs) > 1 else ""
    return f", which holds several: give {runs[0]}{more}"


def check_tokenizers(models: Sequence[Path]) -> None:
    """Raise unless all of these models have the same tokenizer.

    Raises:
        RunError: one has another tokenizer than the first.
    """
    first, *others = (load_tokenizer(folder) for folder in models)
    for folder, other in zip(models[1:], others, strict=True):
        if not same_pieces(first, other):
            raise RunError(
                f"models in one table must have the tokenizer of {models[0]}, got {folder} with "
                "another"
            )


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it, so that no reader sees half of it.

    Raises:
        WriteError: the file cannot be written.
    """
    content = text.encode()
    write_atomically(path, lambda beside: beside.write_bytes(content), len(content))


def flat(value: Any, name: str = "") -> dict[str, Leaf]:  # noqa: ANN401 - JSON, as above
    """Return the leaves of nested JSON values by path, such as `learner.seed`, without None."""
    if value is None:
        return {}
    if not isinstance(value, dict | list):
        return {name: value}
    leaves = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        leaves |= flat(item, f"{name}.{key}" if name else str(key))
    return leaves


def _commit() -> str | None:
    """Return the git commit of the code, or None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
