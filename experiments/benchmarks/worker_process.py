"""Separate processes for work that must not share memory or threads with the caller.

Each process runs with as many PyTorch threads as the one that starts it. The caller waits for every
result, so two processes never work at once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from textgen_env.registry import load_plugins, plugins
from textgen_experiments.runs.child_process import interrupts_held, obey_parent, spawn_context

T = TypeVar("T")


class WorkerProcess(Generic[T]):
    """Function that is built and called in a process of its own.

    Args:
        make: a function of a module, which returns the function to call.
        arguments: passed to `make`; they are pickled, as are all later arguments and results.
    """

    def __init__(self, make: Callable[..., Callable[..., T]], *arguments: object) -> None:
        initial = torch.get_num_threads(), tuple(plugins), make, arguments
        self._pool = ProcessPoolExecutor(1, spawn_context(), _make_function, initial)

    def __call__(self, *arguments: object) -> T:
        """Call the function in its process and wait for the result."""
        with interrupts_held():
            future = self._pool.submit(_call_function, *arguments)
        return future.result()


def run_in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Return `function(*arguments)`, computed in a process that ends afterwards.

    Args:
        function: a function of a module.
        arguments: they are pickled, as is the result.
    """
    initial = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, spawn_context(), _begin_process, initial) as executor:
        with interrupts_held():
            future = executor.submit(function, *arguments)
        return future.result()


_functions: list[Callable[..., Any]] = []  # holds the function of a worker process


def _begin_process(threads: int) -> None:
    obey_parent()
    torch.set_num_threads(threads)


def _make_function(
    threads: int,
    plugins: Sequence[str],
    make: Callable[..., Callable[..., Any]],
    arguments: tuple[object, ...],
) -> None:
    _begin_process(threads)
    load_plugins(plugins)
    _functions.append(make(*arguments))


def _call_function(*arguments: object) -> Any:  # noqa: ANN401 - depends on the function
    return _functions[0](*arguments)
