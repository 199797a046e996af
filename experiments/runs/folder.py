"""A run's folder: what is in it, and how it is read back.

`config.json` (the resolved experiment, versions, precision), `metrics.jsonl`, TensorBoard events,
`checkpoints/`, `model/` (the best weights with their tokenizer) and `results.json`.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import torch

from textgen_agents import AGENTS
from textgen_agents.f_distill import JS, KL, RKL, TVD
from textgen_agents.losses.labels import Dense, Top1, TopKWithTail
from textgen_agents.rollouts.schedules import (
    Constant,
    Exponential,
    Indicator,
    Linear,
    ReverseSigmoid,
)
from textgen_agents.training.learner import LearnerConfig
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.generation.decoding import Sampling
from textgen_env.models.huggingface.model import HuggingFaceConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import load_tokenizer
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.descriptions import DescriptionsConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.task import Limits
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tasks.verses import VersesConfig
from textgen_env.tokenizers.subword import same_pieces
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.old_names import with_current_names

CONFIG = "config.json"
PACKAGES = ("torch", "gymnasium", "tokenizers", "accelerate", "sacrebleu")
RECORDS = {
    record.__name__: record
    for record in (
        Experiment,
        LearnerConfig,
        VersesConfig,
        DescriptionsConfig,
        TextFilesConfig,
        HubConfig,
        CopyConfig,
        Limits,
        RecurrentConfig,
        TransformerConfig,
        RemoteTeacher,
        HuggingFaceConfig,
        Sampling,
        Constant,
        Linear,
        Exponential,
        ReverseSigmoid,
        Indicator,
        Top1,
        TopKWithTail,
        Dense,
        KL,
        RKL,
        JS,
        TVD,
        *AGENTS.values(),
    )
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Leaf = bool | int | float | str
"""A value of a configuration that holds no others."""


class RunError(ValueError):
    """A run's folder that cannot be used as asked."""


@dataclass(frozen=True)
class Run:
    """What a run's `config.json` says.

    Attributes:
        experiment: the resolved experiment.
        precision: name of the dtype of autocast and of inference.
        onednn: whether float32 products on CPUs go through oneDNN.
    """

    experiment: Experiment
    precision: str
    onednn: bool

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `precision` names."""
        return DTYPES[self.precision]


def write_config(folder: Path, run: Run, extra: Mapping[str, object]) -> None:
    """Write `config.json`; `extra` is kept beside the experiment for the reader, not read back.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "experiment": to_json(run.experiment),
        "precision": run.precision,
        "onednn": run.onednn,
        "versions": {package: version(package) for package in PACKAGES},
        "commit": _commit(),
        **extra,
    }
    write_text(folder / CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_config(folder: Path) -> Run:
    """What the run in `folder` was started with.

    Raises:
        RunError: there is no run there, or its `config.json` cannot be understood.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"run must be a folder with a config.json, got {folder}")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_hook=with_current_names)
        run = Run(from_json(content["experiment"]), content["precision"], content["onednn"])
        _check_kinds(run)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} must be a run's configuration, got: {error!r}") from error
    return run


def _check_kinds(run: Run) -> None:
    """Raise if a part is not what its record declares, of which JSON says nothing."""
    if not isinstance(run.experiment, Experiment):
        raise TypeError(f"experiment must be an Experiment, got {run.experiment!r}")
    if run.precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {run.precision!r}")
    for name, kind in get_type_hints(Experiment).items():
        part = getattr(run.experiment, name)
        if name != "precision" and not isinstance(part, kind):
            raise TypeError(f"{name} must be a {kind}, got {part!r}")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """What runs that shall stand in one table were started with.

    Raises:
        RunError: there is none, or they differ in task or teacher, be it here or on a server.
    """
    if not folders:
        raise RunError("runs must be at least one folder, got none")
    runs = [read_config(folder) for folder in folders]
    compared = [(each.task, each.teacher, each.server) for each in (run.experiment for run in runs)]
    for folder, parts in zip(folders, compared, strict=True):
        if parts != compared[0]:
            raise RunError(
                f"runs in one table must have the same task and teacher as {folders[0]}, "
                f"got {folder} with others"
            )
    return runs


def check_tokenizers(models: Sequence[Path]) -> None:
    """Raise unless what one of these models writes the others can read.

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
    """Write `text` beside `path` and rename it, so that no reader sees half of it."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def to_json(value: object) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """A configuration as JSON values; a record carries its class's name as "type"."""
    if is_dataclass(value):
        named = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **named}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return {"type": "Path", "path": str(value)} if isinstance(value, Path) else value


def flat(value: Any, name: str = "") -> dict[str, Leaf]:  # noqa: ANN401 - JSON, as above
    """The leaves of nested JSON values by their path, such as `learner.seed`; None is left out."""
    if value is None:
        return {}
    if not isinstance(value, dict | list):
        return {name: value}
    leaves = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        leaves |= flat(item, f"{name}.{key}" if name else str(key))
    return leaves


def from_json(value: Any) -> Any:  # noqa: ANN401 - the inverse of `to_json`
    """The configuration that `to_json` turned into `value`."""
    if isinstance(value, dict) and value["type"] == "Path":
        return Path(value["path"])
    if isinstance(value, dict):
        named = {name: from_json(item) for name, item in value.items() if name != "type"}
        return RECORDS[value["type"]](**named)
    return tuple(from_json(item) for item in value) if isinstance(value, list) else value


def _commit() -> str | None:
    """The git commit of the code, or None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
