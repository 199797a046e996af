"""Processes that this program begins: signals are answered by it, and they end with it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.context import SpawnContext
from threading import Thread

from textgen_experiments.runs.interrupts import DEFECT, INTERRUPTS

WARNINGS = "PYTHONWARNINGS"  # variable of the environment that processes inherit


def spawn_context() -> SpawnContext:
    """Return the way in which processes are begun: a fork after torch's threads can hang.

    The process that tracks their semaphores begins with it. It removes those of a program that a
    signal has ended, and does not warn of them.
    """
    before = os.environ.get(WARNINGS)
    os.environ[WARNINGS] = ",".join(filter(None, (before, "ignore:resource_tracker")))
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop(WARNINGS)
        if before is not None:
            os.environ[WARNINGS] = before
    return get_context("spawn")


def obey_parent() -> None:
    """Leave Ctrl-C to the process that began this one, obey its SIGTERM, and end when it is gone.

    Otherwise a run could be resumed while a process that was left behind still writes it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, INTERRUPTS.obey)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "it was begun by another process"
    parent.join()
    os._exit(DEFECT)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C within the block; processes that it starts never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
