"""Functions in processes of their own: results in order, inputs read a little ahead, a death."""

import os
from functools import partial

import pytest

from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.worker_processes import AHEAD, WorkerProcesses


def test_results_have_the_order_of_the_inputs_which_are_read_a_little_ahead():
    read = []

    def inputs():
        for each in range(20):
            read.append(each)
            yield each

    workers = WorkerProcesses(partial, pow, 2)
    results = workers.map(inputs())
    assert next(results) == 1
    assert len(read) == AHEAD + 1
    assert list(results) == [2**each for each in range(1, 20)]
    workers.end()


def test_a_process_that_is_killed_is_an_error_of_the_user():
    workers = WorkerProcesses(partial, os._exit)
    with pytest.raises(RunError, match="one that was killed, perhaps for want of memory"):
        list(workers.map([1]))
    workers.end()
