"""Begin, resume or extend a run: which settings its folder may go on with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from textgen_agents.training.checkpoint import LAST, read_counters
from textgen_agents.training.distributed import this_device, this_process
from textgen_env.files import remove_leftovers
from textgen_env.models.acceleration.precision import MeasuredPrecision, measure_precision
from textgen_experiments.runs.command import this_command
from textgen_experiments.runs.differences import (
    UPDATES,
    Difference,
    differences,
    words_of_differences,
)
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import (
    CELL,
    CHECKPOINTS,
    CONFIG,
    OUTCOME,
    Run,
    RunError,
    change_config,
    contents,
    read_config,
    write_config,
)
from textgen_experiments.runs.kept_measurements import measured_once
from textgen_experiments.runs.outside import check_unchanged, outside_digests
from textgen_experiments.runs.progress import tell


def start_or_resume(experiment: Experiment, folder: Path) -> Run:
    """Return the run's configuration: read from its folder, or decided now and written there.

    A run that holds nothing but its configuration, because its settings or its files were refused,
    is replaced where these are others now. A run that has reached its last update goes on if the
    number of updates is raised.

    Raises:
        RunError: the folder holds a run with other settings, or anything that is not a run's.
        ChangedFileError: a file that the run began with has other content now.
    """
    check_is_run(folder)
    if not (folder / CONFIG).exists():
        return _start(experiment, folder)
    run, has_begun = read_config(folder), contents(folder) != {CONFIG}
    different = list(differences(run.experiment, experiment))
    if not has_begun:
        same = not different and run.digests == outside_digests(experiment)
        return _resume(run, experiment, folder) if same else _start(experiment, folder)
    if different and not _is_longer(run.experiment, experiment, folder):
        raise _other_settings(folder, different)
    check_unchanged(folder, experiment, run.digests)
    if different:
        _extend(run.experiment, experiment, folder)
    return _resume(run, experiment, folder)


@contextmanager
def undone_if_refused(folder: Path) -> Iterator[None]:
    """Remove the configuration if the block wrote it and fails before anything else is written.

    Of several processes others may still read it, and it stays.
    """
    is_new = not (folder / CONFIG).exists()
    try:
        yield
    except Exception:
        if is_new and this_process().num_processes == 1 and contents(folder) == {CONFIG}:
            (folder / CONFIG).unlink()
        raise


def check_is_run(folder: Path) -> None:
    """Raise `RunError` if `folder` holds anything that is not a run's."""
    content = contents(folder)
    if content and CONFIG not in content:
        raise RunError(
            f"{folder} must be missing, empty or the folder of a run, got one with {min(content)} "
            f"and without {CONFIG}: choose another folder"
        )


def _start(experiment: Experiment, folder: Path) -> Run:
    """Write and return the configuration of a new run, with the precision that is faster here."""
    precision = precision_here(experiment.student.width)
    dtype, digests = experiment.precision or precision.name, outside_digests(experiment)
    run = Run(experiment, dtype, precision.onednn, digests)
    origin = {"command": this_command(), "precision_measurement": asdict(precision)}
    write_config(folder, run, origin)
    tell(
        f"precision: {run.precision} (measured: float32 {precision.float32:.0f}, bfloat16 "
        f"{precision.bfloat16:.0f} GFLOP/s)"
    )
    return run


def precision_here(width: int) -> MeasuredPrecision:
    """Return the precision that models of a width are trained in on this device, measured once."""
    device, place = this_device(), f"{torch.get_num_threads()} threads"
    if device.type != "cpu":
        place = torch.cuda.get_device_name(device)
    return measured_once(
        f"training: width {width}, {place}",
        MeasuredPrecision,
        partial(measure_precision, width, device=device),
    )


def _resume(run: Run, experiment: Experiment, folder: Path) -> Run:
    """Return the run with the settings of now, among which a server may have moved."""
    if this_process().is_main_process:
        for written in (folder, folder / CHECKPOINTS):
            remove_leftovers(written)
    return replace(run, experiment=experiment)


def _is_longer(old: Experiment, new: Experiment, folder: Path) -> bool:
    """Return True if `new` only adds updates to a run that has made all of its own."""
    longer = replace(old, learner=replace(old.learner, updates=new.learner.updates))
    last = folder / CHECKPOINTS / LAST
    return (
        new.learner.updates > old.learner.updates
        and not list(differences(longer, new))
        and last.exists()
        and read_counters(last).update == old.learner.updates
    )


def _extend(old: Experiment, new: Experiment, folder: Path) -> None:
    """Let the finished run in `folder` go on to the new number of updates."""
    (folder / OUTCOME).unlink(missing_ok=True)  # first: without it the run can still be extended
    (folder / CELL).unlink(missing_ok=True)  # it was done with fewer updates
    change_config(folder, new)
    tell(
        f"{folder} goes on from update {old.learner.updates:,} to {new.learner.updates:,}, with "
        "learning rate and schedules as at that update of a run of the new length"
    )


def _other_settings(folder: Path, different: list[Difference]) -> RunError:
    """Return the error of a run that is to be resumed with other settings."""
    (name, before, after), *others = different
    remedy, is_finished = "give the settings of the run", (folder / OUTCOME).exists()
    longer = f"; to train longer raise --{UPDATES} alone" if is_finished else ""
    if not others and name == UPDATES and int(after) > int(before):
        remedy = f"end it with --{UPDATES} {before} first, then raise them to train longer"
        if is_finished:
            remedy, longer = "it has no checkpoint to go on from (--no-keep-checkpoint)", ""
    return RunError(
        f"{folder} must be resumed with the settings that it has, got "
        f"{words_of_differences(different)}: {remedy}, or choose another folder{longer}"
    )
