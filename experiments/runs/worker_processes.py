"""Separate processes for work that must not share memory or threads with the caller."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from textgen_env.registry import load_plugins, plugins
from textgen_experiments.runs.child_process import interrupts_held, obey_parent, spawn_context
from textgen_experiments.runs.folder import RunError

T = TypeVar("T")
AHEAD = 2  # inputs of each process that may wait for the first one's result


class WorkerProcesses(Generic[T]):
    """Function that is built and called in processes of its own.

    Each runs with an equal share of the PyTorch threads of the one that starts them.

    Args:
        make: a function of a module, which returns the function to call.
        arguments: passed to `make`; they are pickled, as are all later arguments and results.
        count: number of processes, at least 1.
    """

    def __init__(
        self, make: Callable[..., Callable[..., T]], *arguments: object, count: int = 1
    ) -> None:
        threads = max(1, torch.get_num_threads() // count)
        initial = threads, tuple(plugins), make, arguments
        self.count = count
        self._pool = ProcessPoolExecutor(count, spawn_context(), _make_function, initial)

    def __call__(self, *arguments: object) -> T:
        """Call the function in one of the processes and wait for the result."""
        return self._submit(*arguments).result()

    def map(self, inputs: Iterable[object]) -> Iterator[T]:
        """Yield the function's results in the order of the inputs, which are read a little ahead.

        Raises:
            RunError: a process was killed.
        """
        waiting: deque[Future[T]] = deque()
        try:
            for each in inputs:
                waiting.append(self._submit(each))
                if len(waiting) > AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RunError(
                "each of the processes must go on to the end, got one that was killed, perhaps for "
                "want of memory: use fewer of them"
            ) from None

    def end(self) -> None:
        """End the processes, each after what it is at."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, *arguments: object) -> Future[T]:
        with interrupts_held():
            return self._pool.submit(_call_function, *arguments)


def run_in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Return `function(*arguments)`, computed in a process that ends afterwards.

    Args:
        function: a function of a module.
        arguments: they are pickled, as is the result.
    """
    worker = WorkerProcesses(partial, function)
    try:
        return worker(*arguments)
    finally:
        worker.end()


_functions: list[Callable[..., Any]] = []  # holds the function of a worker process


def _make_function(
    threads: int,
    plugins: Sequence[str],
    make: Callable[..., Callable[..., Any]],
    arguments: tuple[object, ...],
) -> None:
    obey_parent()
    torch.set_num_threads(threads)
    load_plugins(plugins)
    _functions.append(make(*arguments))


def _call_function(*arguments: object) -> Any:  # noqa: ANN401 - depends on the function
    return _functions[0](*arguments)
