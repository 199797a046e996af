"""Training of several runs at once, a process for each, with the cores shared out among them.

The update of a small student consists of many small operators, which more threads hardly speed up.
Two runs of one thread each end sooner than one after the other with two threads.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NoReturn

import torch

from textgen_agents.training.checkpoint import TrainingStopped
from textgen_agents.training.learner import Record
from textgen_env.registry import load_plugins, plugins
from textgen_experiments.runs.child_process import interrupts_held, obey_parent, spawn_context
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.kernel_caches import limit_kept_products
from textgen_experiments.runs.malloc import retain_freed_memory, spare_imports
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.progress import RunsDisplay, be_quiet, progress_told_to, runs_display
from textgen_experiments.runs.train import Show, train

Report = tuple[str, int, Record] | tuple[str, str]
"""Name of a run, update and figures; or its name and how far its preparation is."""
Work = Callable[[Experiment, Path, Show], Outcome]
OnFailure = Callable[[Path, Exception], None]
"""Called with the folder of a run that has failed, and its error; what it raises stops all runs."""
LOOK_EVERY = 0.2  # seconds


def raise_failure(folder: Path, error: Exception) -> NoReturn:
    """Raise the error of a run that has failed."""
    del folder
    raise error


def train_in_parallel(
    runs: Mapping[Path, Experiment],
    work: Work = train,
    at_most: int | None = None,
    on_failure: OnFailure = raise_failure,
) -> None:
    """Train or resume all `runs`, by folder; the longest are best named first.

    With CUDA one after the other, each with the whole device.

    Args:
        runs: experiment of each folder, perhaps none; folders have different names.
        work: function called for each, `train` or one that calls it; importable by its name.
        at_most: runs at the same time; None for one a core. OMP_NUM_THREADS limits the threads of
            each.
        on_failure: what is done about a run that fails or whose process is killed; by default its
            error is raised, and the others stop as on a signal.

    Raises:
        RunError, TrainingError, ...: as `work`, where `on_failure` raises it.
        TrainingStopped: a signal came; each run has written a checkpoint, and resumes there when
            called again.
    """
    if not runs:
        return
    cores = os.cpu_count() or 1
    workers = 1 if torch.cuda.is_available() else min(len(runs), at_most or cores)
    before = active_children()
    with INTERRUPTS.awaited(), runs_display() as bars:
        for folder, experiment in runs.items():
            bars.add(folder.name, experiment.learner.updates)
        bars.show_all()
        crew = _Crew(work, [_RunProcess(max(1, cores // workers)) for _ in range(workers)])
        try:
            crew.train(runs, bars, on_failure)
        except BaseException:
            for process in set(active_children()) - set(before):
                process.terminate()
            raise
        finally:
            crew.end()


class _RunProcess:
    """A process that does one run after the other, begun with the first.

    It has a queue of its own for its reports: one that is killed may leave its queue locked.
    """

    def __init__(self, threads: int) -> None:
        spawn = spawn_context()
        self.threads, self.reports = threads, spawn.Queue()
        initial = tuple(plugins), threads, self.reports
        self.pool = ProcessPoolExecutor(1, spawn, _begin, initial)

    def end(self) -> None:
        """Wait until the process has ended."""
        self.pool.shutdown()
        self.reports.close()


@dataclass
class _Crew:
    """Processes that share out the runs among them.

    Attributes:
        work: function called for each run.
        idle: processes that have no run.
        running: future of each run in progress -> its process and its folder.
    """

    work: Work
    idle: list[_RunProcess]

    def __post_init__(self) -> None:
        self.running: dict[Future[Outcome], tuple[_RunProcess, Path]] = {}

    def train(
        self, runs: Mapping[Path, Experiment], bars: RunsDisplay, on_failure: OnFailure
    ) -> None:
        """Do all runs and show their progress, until a failure or a signal stops them."""
        waiting = deque(runs.items())
        while waiting or self.running:
            while waiting and self.idle:
                self._begin(*waiting.popleft())
            done, _ = wait(self.running, LOOK_EVERY, FIRST_COMPLETED)
            if INTERRUPTS.is_stopping():
                raise TrainingStopped
            _show_reports(bars, (process for process, _ in self.running.values()))
            for run in done:
                self._end(run, bars, on_failure)

    def end(self) -> None:
        """Wait until all processes have ended."""
        for process in [*self.idle, *(process for process, _ in self.running.values())]:
            process.end()

    def _begin(self, folder: Path, experiment: Experiment) -> None:
        process = self.idle.pop(0)
        with interrupts_held():
            run = process.pool.submit(_work, self.work, experiment, folder)
        self.running[run] = process, folder

    def _end(self, run: "Future[Outcome]", bars: RunsDisplay, on_failure: OnFailure) -> None:
        """Show the outcome of a run, and free its process or replace it by a new one."""
        process, folder = self.running.pop(run)
        error = run.exception()
        if isinstance(error, BrokenProcessPool):
            process.end()
            process, error = _RunProcess(process.threads), _killed(folder)
        self.idle.append(process)
        if isinstance(error, Exception):
            on_failure(folder, error)
        elif error is not None:
            raise error
        bars.finish(folder.name, f"failed: {error}" if error else _words_of_outcome(run.result()))


def _killed(folder: Path) -> RunError:
    """Return the error of a run whose process is gone."""
    return RunError(
        f"{folder} must have a process of its own, got one that was killed, perhaps for want of "
        "memory; the same command goes on"
    )


def _words_of_outcome(outcome: Outcome) -> str:
    return (
        f"{outcome.words_of_scores} at update {outcome.best_update}, {outcome.train_seconds:.0f} s"
    )


_reports: "list[Queue[Report]]" = []  # holds the queue of a process of the pool


def _begin(plugins: Sequence[str], threads: int, reports: "Queue[Report]") -> None:
    """Prepare a process of the pool."""
    obey_parent()
    reports.cancel_join_thread()  # at the end nobody reads what is left
    _reports.append(reports)
    load_plugins(plugins)
    limit_kept_products()
    retain_freed_memory()
    spare_imports()
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    be_quiet()


def _work(work: Work, experiment: Experiment, folder: Path) -> Outcome:
    """Call `work` in a process of the pool, which ends where a signal has stopped it."""

    def show(update: int, record: Record) -> None:
        _reports[0].put((folder.name, update, record))

    def note(preparation: str) -> None:
        _reports[0].put((folder.name, preparation))

    try:
        with progress_told_to(note):
            return work(experiment, folder, show)
    except (TrainingStopped, KeyboardInterrupt):
        INTERRUPTS.end_silently()


def _show_reports(bars: RunsDisplay, processes: Iterable[_RunProcess]) -> None:
    """Show what the processes have reported since the last look."""
    for process in processes:
        while not process.reports.empty():
            report = process.reports.get()
            if report[0] in bars.runs:  # a last one may come after the end of its run
                _report(bars, report)


def _report(bars: RunsDisplay, report: Report) -> None:
    """Show what the process of a run has reported."""
    match report:
        case (title, update, record):
            bars.show(title, update, record)
        case (title, preparation):
            bars.note(title, preparation)
