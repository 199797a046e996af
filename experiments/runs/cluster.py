"""Cells of a plan as jobs of submitit: a Slurm array, or processes of this machine.

A job trains its cells one after the other. Before its time is over, or when it is preempted, it
lets the run in progress write a checkpoint, is queued again and goes on from there.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import active_children
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textgen_env.bounds import check_above, check_at_least
from textgen_env.registry import load_plugins, plugins
from textgen_experiments.runs.parallel import Work
from textgen_experiments.runs.plan import Cells, PlanError, do_cells, not_done
from textgen_experiments.runs.progress import tell

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

LOGS = "cluster"  # folder of the jobs' logs below the plan's
EXTRA = "pip install 'textgen-env[cluster]'"
ClusterKind = Literal["slurm", "local"]


@dataclass(frozen=True)
class SlurmOptions:
    """Resources that each job of a cluster asks for.

    Attributes:
        partition: partition of Slurm; None for its default.
        minutes: longest time of a job until it is queued again.
        requeues: times that a job may use up its minutes and be queued again.
        cpus: cores.
        gpus: CUDA devices, 0 to train on CPUs; a job of this machine sees no others.
        memory_gb: gigabytes of memory.
    """

    partition: str | None = None
    minutes: int = 240
    requeues: int = 20
    cpus: int = 1
    gpus: int = 0
    memory_gb: float = 8.0

    def __post_init__(self) -> None:
        check_at_least(self, minutes=1, requeues=0, cpus=1, gpus=0)
        check_above(self, memory_gb=0)


@dataclass(frozen=True)
class CellsJob:
    """Cells of a plan as the function of a job.

    Attributes:
        cells: trained one after the other.
        work: function called for each.
        threads: of operators on CPUs, unless OMP_NUM_THREADS says another number.
        plugins: loaded before.
        command: words of the command that submits it, which the runs note.
    """

    cells: Cells
    work: Work
    threads: int
    plugins: tuple[str, ...]
    command: tuple[str, ...]

    def __call__(self) -> None:
        """Train the cells that are not done.

        Raises:
            PlanError: cells have failed, after all others are done.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # for the runs' process
        sys.argv[:] = self.command
        load_plugins(self.plugins)
        do_cells(not_done(self.cells), self.work, 1)

    def checkpoint(self) -> "DelayedSubmission":
        """Let the run in progress write a checkpoint, and return what goes on from there."""
        processes = active_children()
        for process in processes:
            process.terminate()
        for process in processes:
            wait([process.sentinel])
        return _submitit().helpers.DelayedSubmission(self)


def submit_jobs(
    output: Path,
    cells: Cells,
    work: Work,
    *,
    kind: ClusterKind,
    jobs: int | None,
    resources: SlurmOptions,
) -> None:
    """Submit cells as jobs; those of this machine are waited for.

    Args:
        output: folder of the plan, which gets the jobs' logs.
        cells: shared out among the jobs; at least one.
        work: function called for each.
        kind: "slurm" for an array of Slurm, "local" for processes of this machine.
        jobs: number of jobs at most; None for one a cell on Slurm, one a core here.
        resources: what each job asks for.

    Raises:
        PlanError: submitit is not installed, there is no Slurm, or cells of this machine's jobs
            are not done after them.
    """
    submitit = _submitit()
    if kind == "slurm" and shutil.which("srun") is None:
        raise PlanError("cluster must be local where there is no Slurm (srun), got slurm")
    executor = submitit.AutoExecutor(
        output / LOGS, cluster=kind, **{f"{kind}_max_num_timeout": resources.requeues}
    )
    executor.update_parameters(
        name="textgen",
        timeout_min=resources.minutes,
        cpus_per_task=resources.cpus,
        gpus_per_node=resources.gpus,
        mem_gb=resources.memory_gb,
        slurm_partition=resources.partition,
    )
    at_most = jobs or (len(cells) if kind == "slurm" else os.cpu_count() or 1)
    with executor.batch():
        begun = [
            executor.submit(
                CellsJob(part, work, resources.cpus, tuple(plugins), tuple(sys.argv)),
            )
            for part in _shares(cells, min(at_most, len(cells)))
        ]
    tell(f"{len(cells)} runs in {len(begun)} jobs, whose logs are in {output / LOGS}")
    if kind == "local":
        _wait_for(begun)
        if left := not_done(cells):
            raise PlanError(
                f"{len(left)} of {len(cells)} runs failed, first {next(iter(left)).name}: see the "
                f"logs in {output / LOGS}; the same command tries them again"
            )


def _shares(cells: Cells, count: int) -> list[Cells]:
    """Return `count` parts of the cells, as equal as can be."""
    listed = [*cells.items()]
    return [dict(listed[first::count]) for first in range(count)]


def _wait_for(jobs: Sequence[Any]) -> None:
    """Wait until all jobs of this machine have ended; they end with the wait."""
    try:
        for job in jobs:
            job.wait()
    except BaseException:
        for job in jobs:
            job.cancel()
        raise


def _submitit() -> Any:  # noqa: ANN401 - a module of an extra
    """Return the package `submitit`.

    Raises:
        PlanError: it is not installed.
    """
    try:
        return import_module("submitit")
    except ModuleNotFoundError as error:
        raise PlanError(
            f"cluster must be left out where submitit is not installed, got none: {EXTRA}"
        ) from error
