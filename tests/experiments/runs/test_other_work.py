import os
import subprocess
import sys
import time

import pytest

from textgen_experiments.runs.other_work import (
    SYSTEM_TIMES,
    CoreClock,
    advice_on_threads,
    busy_core_seconds,
)

needs_linux = pytest.mark.skipif(not SYSTEM_TIMES.exists(), reason="the system does not tell")


@pytest.mark.parametrize(
    ("busy", "cores", "threads", "advised"),
    [
        (0.0, 2, 2, None),
        (0.4, 2, 2, None),
        (1.0, 2, 2, 1),
        (2.0, 2, 2, 1),
        (1.0, 2, 1, None),
        (2.0, 2, 1, None),
        (3.2, 8, 8, 5),
        (3.2, 8, 4, None),
        (70.0, 64, 2, 1),
    ],
)
def test_fewer_threads_are_advised_where_cores_are_taken(busy, cores, threads, advised):
    advice = advice_on_threads(busy, cores, threads)
    assert (f"--threads {advised} " in advice) if advised else not advice


def test_busy_ticks_are_all_but_idle_and_waiting_ones(tmp_path):
    times = tmp_path / "stat"
    times.write_text("cpu  100 20 30 5000 700 4 6 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert busy_core_seconds(times) == pytest.approx(160 / os.sysconf("SC_CLK_TCK"))


def test_a_system_that_does_not_tell_has_nothing_busy(tmp_path):
    assert busy_core_seconds(tmp_path / "none") is None
    assert CoreClock(time.monotonic() - 1, None, 0.0).busy_elsewhere() == 0


@needs_linux
def test_work_of_another_process_counts():
    """Other processes of the machine only add to a child's."""
    clock, before = CoreClock.start(), os.times().children_user
    subprocess.run([sys.executable, "-c", "for i in range(10**7): pass"], check=True)
    used, seconds = os.times().children_user - before, time.monotonic() - clock.began
    assert clock.busy_elsewhere() * seconds > used - 0.1


def test_own_work_does_not_count():
    clock = CoreClock.start()
    only_own = CoreClock(clock.began - 10.0, clock.busy, clock.own - 10.0)
    assert only_own.busy_elsewhere() == 0
