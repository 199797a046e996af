"""Work in a process of its own, which waits while others are timed."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

import torch

from textgen_env.registry import load_plugins, plugins

T = TypeVar("T")


class WorkerProcess(Generic[T]):
    """What `make(*arguments)` gives, made and called in a process with as many threads as this one.

    Args:
        make: a function of a module, which gives another function.
        arguments: its own; they are pickled, as all that is given and returned later.
    """

    def __init__(self, make: Callable[..., Callable[..., T]], *arguments: object) -> None:
        initial = torch.get_num_threads(), tuple(plugins), make, arguments
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, initial)

    def __call__(self, *arguments: object) -> T:
        """One call there; this process waits."""
        return self._pool.submit(_call, *arguments).result()


_here: list[Callable[..., Any]] = []  # of such a process


def _begin(
    threads: int, plugins: Sequence[str], make: Callable[..., Any], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(threads)
    load_plugins(plugins)
    _here.append(make(*arguments))


def _call(*arguments: object) -> Any:  # noqa: ANN401 - whatever was made returns
    return _here[0](*arguments)
