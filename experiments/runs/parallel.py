"""Training of several runs at once, a process for each, with the cores shared out among them.

The update of a small student consists of many small operators, which more threads hardly speed up.
Two runs of one thread each end sooner than one after the other with two threads.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.managers import SyncManager
from pathlib import Path
from queue import Queue
from threading import Thread

import torch

from textgen_agents.training.learner import Record
from textgen_env.registry import load_plugins, plugins
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.interrupts import interrupts_held
from textgen_experiments.runs.malloc import retain_freed_memory
from textgen_experiments.runs.run_log import Bars, console
from textgen_experiments.runs.train import Outcome, Show, train

Report = tuple[str, int, Record]  # name of the run, update, figures
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
            killed; the others are stopped, and resume at their last checkpoints when called again.
    """
    if not runs:
        return
    cores = os.cpu_count() or 1
    workers = 1 if torch.cuda.is_available() else min(len(runs), at_most or cores)
    spawn = get_context("spawn")  # a fork of a process that has used torch's threads can hang
    manager = SyncManager(ctx=spawn)
    with interrupts_held():
        manager.start(_obey)
    with manager, Bars() as bars:
        reports: Queue[Report] = manager.Queue()
        with ProcessPoolExecutor(workers, spawn, _begin, (tuple(plugins),)) as pool:
            before = active_children()
            running = {}
            for folder, experiment in runs.items():
                bars.add(folder.name, experiment.learner.updates)
                with interrupts_held():
                    run = pool.submit(
                        _work, work, experiment, folder, max(1, cores // workers), reports
                    )
                running[run] = folder.name
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


def _begin(plugins: Sequence[str]) -> None:
    """Prepare a process of the pool."""
    _obey()
    load_plugins(plugins)


def _obey() -> None:
    """Leave interrupts to the parent process, and end when it is gone.

    Otherwise a run could be resumed while a process that was left behind still writes it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a process of the pool has one"
    parent.join()
    os._exit(1)


def _work(
    work: Work, experiment: Experiment, folder: Path, threads: int, reports: "Queue[Report]"
) -> Outcome:
    """Call `work` in a process of the pool, without output of its own."""
    retain_freed_memory()
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    console.quiet = True
    return work(
        experiment, folder, lambda update, record: reports.put((folder.name, update, record))
    )


def _watch(running: Mapping["Future[Outcome]", str], reports: "Queue[Report]", bars: Bars) -> None:
    """Show the progress of the runs, until all are done or one fails."""
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, LOOK_EVERY, FIRST_EXCEPTION)
        while not reports.empty():
            bars.show(*reports.get())
        for run in done:
            outcome = run.result()
            bars.finish(
                running[run],
                f"validation BLEU {outcome.validation_bleu:.1f} at update {outcome.best_update}, "
                f"{outcome.train_seconds:.0f} s",
            )
