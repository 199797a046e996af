"""Checkpoint of a run: one file from which training resumes as if it had never stopped.

Weights, optimizer state, buffers and counters are in a single safetensors file. It is written
beside the old one and renamed over it, so that a kill at any moment leaves a file that loads.
Nothing is pickled. No random state is stored: every random choice is a function of the seed and the
number of the update.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from textgen_agents.rollouts.buffer import Buffer
from textgen_env.files import write_atomically

NOTHING_BESIDE: Mapping[str, nn.Module] = MappingProxyType({})
LAST = "last.safetensors"  # to resume from
BEST = "best.safetensors"  # weights that were best on validation
ANCHOR = "ewc.safetensors"  # of EWC


class CheckpointError(ValueError):
    """Error of a checkpoint from which the run cannot resume."""


class TrainingStopped(Exception):
    """End of a training that was asked to stop, after its checkpoint."""


@dataclass
class Counters:
    """Progress of a run.

    Attributes:
        update: number of updates done.
        best: best validation score so far.
        best_update: update of the best score.
        seconds: time spent on training, without evaluation.
        teacher_tokens: number of states at which the expert was queried.
        validation: score of each evaluation so far.
        validation_losses: cross-entropy on the validation pairs' references before training and
            at each evaluation, nats an action.
        calibration: constant that the agent found on the first batch; None for agents without one.
    """

    update: int = 0
    best: float = float("-inf")
    best_update: int = 0
    seconds: float = 0.0
    teacher_tokens: int = 0
    validation: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    calibration: float | None = None

    @property
    def constants(self) -> dict[str, float]:
        """Constants that the agent has found, by name, to be logged."""
        return {} if self.calibration is None else {"calibration": self.calibration}

    @property
    def last_is_best(self) -> bool:
        """True if no evaluation has a better score than the last, or the same and a lower loss."""
        losses = self.validation_losses[-len(self.validation) :]  # without that before training
        if len(losses) != len(self.validation):  # none is measured without validation pairs
            losses = [0.0] * len(self.validation)
        *before, last = zip(self.validation, (-loss for loss in losses), strict=True)
        return all(last >= other for other in before)


class CheckpointClock:
    """Clock of the checkpoints that are due by time, which starts when it is made.

    Args:
        minutes: longest time without a checkpoint; infinity for no limit.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Note that a checkpoint is written now."""
        self.written = time.monotonic()

    def is_due(self) -> bool:
        """Return True if the last checkpoint is as old as it may become."""
        return time.monotonic() - self.written >= self.seconds


def save_checkpoint(
    path: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    buffers: Sequence[Mapping[str, Tensor]] = (),
    beside: Mapping[str, nn.Module] = NOTHING_BESIDE,
) -> None:
    """Write everything that a resumed run needs to `path`, atomically.

    Args:
        path: path of the file.
        student: model whose weights are stored.
        optimizer: optimizer whose state is stored.
        counters: progress of the run.
        buffers: state of the buffer of each process; empty for an agent without a buffer.
        beside: modules that belong to the run beside the student, by name: moving averages of its
            weights, and those that are trained with it.
    """
    tensors: dict[str, Tensor] = {}
    for which, module in {"student": student, **beside}.items():
        shared = _shared_weights(module, student)
        tensors |= {
            f"{which}.{name}": value
            for name, value in module.state_dict().items()
            if name not in shared
        }
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    for process, state in enumerate(buffers):
        tensors |= {_buffer_prefix(process) + name: value for name, value in state.items()}
    save_atomically(path, tensors, {"counters": json.dumps(asdict(counters))})


def load_checkpoint(
    path: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    buffer: Buffer | None = None,
    process: int = 0,
    beside: Mapping[str, nn.Module] = NOTHING_BESIDE,
) -> Counters:
    """Load the file that `save_checkpoint` wrote, and return its counters.

    Args:
        path: path of the file.
        student: model that receives the weights.
        optimizer: optimizer that receives its state.
        buffer: buffer that receives the state of this process's buffer.
        process: index of this process.
        beside: modules that receive the weights of those of the run beside the student, by name.

    Raises:
        CheckpointError: the file is damaged, holds other models, or lacks one of them or the
            buffer.
    """
    tensors, metadata = load_tensors(path)
    try:
        counters = _counters_of(metadata)
        for which, module in {"student": student, **beside}.items():
            shared = _shared_weights(module, student)
            module.load_state_dict({**shared, **select_prefix(f"{which}.", tensors)})
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


def _shared_weights(module: nn.Module, student: nn.Module) -> dict[str, Tensor]:
    """Return the weights of another module that are the student's own, because none trains them.

    A file can hold a tensor once.
    """
    if module is student:
        return {}
    students = {value.data_ptr() for value in student.state_dict().values()}
    weights = module.state_dict()
    return {name: value for name, value in weights.items() if value.data_ptr() in students}


def read_counters(path: Path) -> Counters:
    """Return the progress of the run whose checkpoint is at `path`.

    Raises:
        CheckpointError: the file is damaged.
    """
    with _reading(path), safe_open(path, framework="pt") as file:
        return _counters_of(file.metadata() or {})


def discard_checkpoints(folder: Path, *, keep_last: bool) -> None:
    """Remove the checkpoints of a finished run, whose best weights have been saved elsewhere.

    Args:
        folder: folder of the checkpoints, removed if nothing stays in it; it may be missing.
        keep_last: True to keep the one from which the run can go on to further updates.
    """
    for name in (BEST, ANCHOR) if keep_last else (BEST, ANCHOR, LAST):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def save_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside `path`, flush it to disk and rename it to `path`.

    Raises:
        WriteError: the file cannot be written.
    """
    whole = {name: value.contiguous() for name, value in tensors.items()}
    num_bytes = sum(value.nbytes for value in whole.values())
    write_atomically(path, lambda beside: save_file(whole, beside, metadata), num_bytes)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata that `save_atomically` wrote to `path`.

    Raises:
        CheckpointError: the file is damaged.
    """
    with _reading(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error about the content of the file at `path` to a `CheckpointError`."""
    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} must hold all that was saved, got: {error}; "
            "delete the run's folder to start anew"
        ) from error


def _counters_of(metadata: Mapping[str, str]) -> Counters:
    """Return the counters that a checkpoint's metadata holds."""
    return Counters(**json.loads(metadata["counters"]))


def _buffer_prefix(process: int) -> str:
    """Return the prefix of the names of a process's buffer."""
    return f"buffer{process or ''}."


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def copy_weights(origin: nn.Module, target: nn.Module) -> None:
    """Overwrite the weights of `target` by those of `origin`, in the precision of `target`."""
    with torch.no_grad():
        for old, new in zip(target.parameters(), origin.parameters(), strict=True):
            old.copy_(new)
