"""Training of several runs at once, a process for each, with the cores shared out among them.

The update of a small student consists of many small operators, which more threads hardly speed up.
Two runs of one thread each end sooner than one after the other with two threads.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children
from multiprocessing.queues import Queue
from pathlib import Path

import torch

from textgen_agents.training.checkpoint import TrainingStopped
from textgen_agents.training.learner import Record
from textgen_env.registry import load_plugins, plugins
from textgen_experiments.runs.child_process import interrupts_held, obey_parent, spawn_context
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.kernel_caches import limit_kept_products
from textgen_experiments.runs.malloc import retain_freed_memory
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.progress import RunsDisplay, be_quiet, progress_told_to, runs_display
from textgen_experiments.runs.train import Show, train

Report = tuple[str, int, Record] | tuple[str, str]
"""Name of a run, update and figures; or its name and how far its preparation is."""
Work = Callable[[Experiment, Path, Show], Outcome]
LOOK_EVERY = 0.2  # seconds


def train_in_parallel(
    runs: Mapping[Path, Experiment], work: Work = train, at_most: int | None = None
) -> None:
    """Train or resume all `runs`, by folder; the longest are best named first.

    With CUDA one after the other, each with the whole device.

    Args:
        runs: experiment of each folder, perhaps none; folders have different names.
        work: function called for each, `train` or one that calls it; importable by its name.
        at_most: runs at the same time; None for one a core. OMP_NUM_THREADS limits the threads of
            each.

    Raises:
        RunError, TrainingError, ...: as `work`, for the first run that fails or whose process is
            killed; the others stop as on a signal.
        TrainingStopped: a signal came; each run has written a checkpoint, and resumes there when
            called again.
    """
    if not runs:
        return
    cores = os.cpu_count() or 1
    workers = 1 if torch.cuda.is_available() else min(len(runs), at_most or cores)
    spawn = spawn_context()
    reports = spawn.Queue()
    initial = tuple(plugins), max(1, cores // workers), reports
    with (
        INTERRUPTS.awaited(),
        runs_display() as bars,
        ProcessPoolExecutor(workers, spawn, _begin, initial) as pool,
    ):
        before = active_children()
        running = {}
        for folder, experiment in runs.items():
            bars.add(folder.name, experiment.learner.updates)
            with interrupts_held():
                running[pool.submit(_work, work, experiment, folder)] = folder.name
        bars.show_all()
        try:
            _watch(running, reports, bars)
        except BaseException as error:
            for process in set(active_children()) - set(before):
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "every run must have a process of its own, got one that was killed, "
                    "perhaps for want of memory; the same command goes on"
                ) from error
            raise


_reports: "list[Queue[Report]]" = []  # holds the queue of a process of the pool


def _begin(plugins: Sequence[str], threads: int, reports: "Queue[Report]") -> None:
    """Prepare a process of the pool."""
    obey_parent()
    reports.cancel_join_thread()  # at the end nobody reads what is left
    _reports.append(reports)
    load_plugins(plugins)
    limit_kept_products()
    retain_freed_memory()
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


def _watch(
    running: Mapping["Future[Outcome]", str], reports: "Queue[Report]", bars: RunsDisplay
) -> None:
    """Show the progress of the runs, until all are done, one fails or a signal comes."""
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, LOOK_EVERY, FIRST_EXCEPTION)
        if INTERRUPTS.is_stopping():
            raise TrainingStopped
        while not reports.empty():
            _report(bars, reports.get())
        for run in done:
            outcome = run.result()
            bars.finish(
                running[run],
                f"validation BLEU {outcome.validation_bleu:.1f} at update {outcome.best_update}, "
                f"{outcome.train_seconds:.0f} s",
            )


def _report(bars: RunsDisplay, report: Report) -> None:
    """Show what the process of a run has reported."""
    match report:
        case (title, update, record):
            bars.show(title, update, record)
        case (title, preparation):
            bars.note(title, preparation)
