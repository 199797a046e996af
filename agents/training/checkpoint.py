"""One file from which a run goes on as if it had never been stopped.

Weights, optimizer state, buffer and counters in a single safetensors file, written beside the old
one and renamed over it: a kill at any moment leaves one that loads. Nothing is pickled. There is no
random state to keep, since every random choice is a function of the seed and the update's number.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from textgen_agents.rollouts.buffer import Buffer


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from."""


@dataclass
class Counters:
    """Where a run stands.

    Attributes:
        update: updates done.
        best: the best validation score so far.
        best_update: the update it was reached at.
        seconds: time spent on training, evaluation left out.
        teacher_tokens: states at which the expert was asked.
        validation: the score of each evaluation so far.
        validation_losses: cross-entropy on the validation pairs' references at each, nats.
    """

    update: int = 0
    best: float = float("-inf")
    best_update: int = 0
    seconds: float = 0.0
    teacher_tokens: int = 0
    validation: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    held: Sequence[Mapping[str, Tensor]] = (),
) -> None:
    """Write everything a resumed run needs to `path`, at once or not at all.

    Args:
        path: of the file.
        student: its weights are kept.
        optimizer: its state is kept.
        counters: are kept.
        held: the state of each process's buffer, if the agent keeps any.
    """
    tensors = {f"student.{name}": value for name, value in student.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    for process, state in enumerate(held):
        tensors |= {_buffer_prefix(process) + name: value for name, value in state.items()}
    save_atomically(path, tensors, {"counters": json.dumps(asdict(counters))})


def load_checkpoint(
    path: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    buffer: Buffer | None = None,
    process: int = 0,
) -> Counters:
    """Put what `save_checkpoint` wrote to `path` in place; returns the counters.

    Args:
        path: of the file.
        student: gets the weights.
        optimizer: gets the state.
        buffer: gets what that of this process held.
        process: the number of this process.

    Raises:
        CheckpointError: the file is damaged, of another model, or without the buffer.
    """
    tensors, metadata = load_tensors(path)
    try:
        counters = Counters(**json.loads(metadata["counters"]))
        student.load_state_dict(select_prefix("student.", tensors))
        if buffer is not None:
            buffer.load_state_dict(select_prefix(_buffer_prefix(process), tensors))
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} must hold the state of this run, got: {error}; "
            "delete the run's folder to start anew"
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in select_prefix("optimizer.", tensors).items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return counters


def save_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside `path`, flush it to the disk and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, beside, metadata)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that `save_atomically` wrote to `path`.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {path} must hold all that was saved, got: {error}; "
            "delete the run's folder to start anew"
        ) from error


def _buffer_prefix(process: int) -> str:
    """What the names of a process's rows begin with."""
    return f"buffer{process or ''}."


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
