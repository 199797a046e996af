"""Programs that are stopped by Ctrl-C or SIGTERM at random moments, by the real entry point."""

import os
import signal
import sys
import time
from collections import Counter

import pytest

from tests.support.stopped_runs import CODES, SECONDS, StoppedRuns, start, stop
from textgen_experiments.runs.interrupts import GOES_ON, Interrupts

STOPS = int(os.environ.get("TEXTGEN_STOPS", "12"))  # how often the slow tests stop a program


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return StoppedRuns(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("signals", [tuple(CODES), (signal.SIGKILL,)], ids=["asked", "killed"])
def test_a_run_that_is_stopped_at_any_moments_ends_with_the_same_weights(runs, signals):
    stops = runs.stop(STOPS, signals, seed=0)
    for each in stops:
        each.check()
    slowest = max(stops, key=lambda each: each.seconds)
    codes = Counter(each.code for each in stops)
    sys.stdout.write(f"exit codes: {codes}, load: {os.getloadavg()}, slowest: {slowest}\n")


def wait_for(path):
    last = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < last, f"no {path}"
        time.sleep(0.01)


@pytest.mark.parametrize("number", CODES)
def test_training_stops_between_updates_with_a_checkpoint(tmp_path, number):
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.jsonl")
    stopped = stop(process, number, moment=0.0)
    stopped.check()
    assert stopped.output.endswith(f"textgen: stopped{GOES_ON}\n")
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()


@pytest.fixture
def ended(monkeypatch):
    """Exit codes of programs that would have ended."""
    codes = []
    monkeypatch.setattr(os, "write", lambda place, text: None)

    def end(code):
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    return codes


def test_a_signal_is_noted_where_it_is_awaited_and_the_second_ends_at_once(ended):
    interrupts = Interrupts()
    interrupts.is_awaited = True
    interrupts.answer(signal.SIGINT, None)
    assert interrupts.is_stopping()
    assert not ended
    with pytest.raises(SystemExit):
        interrupts.answer(signal.SIGTERM, None)
    assert ended == [130]


def test_a_signal_after_the_last_look_stops_what_follows():
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.awaited():
        interrupts.answer(signal.SIGTERM, None)
    assert interrupts.exit_code == 143


def test_a_signal_before_a_command_runs_ends_the_program(ended):
    with pytest.raises(SystemExit):
        Interrupts().answer(signal.SIGTERM, None)
    assert ended == [143]


def test_a_command_that_does_not_end_by_itself_is_ended(monkeypatch):
    interrupts, waited = Interrupts(), []

    class Watchdog:
        def __init__(self, seconds, action):
            waited.append((seconds, action))

        def start(self):
            waited.append("started")

    monkeypatch.setattr("textgen_experiments.runs.interrupts.Timer", Watchdog)
    with pytest.raises(KeyboardInterrupt), interrupts.unwinding(is_resumable=True):
        interrupts.answer(signal.SIGINT, None)
    assert waited == [(2.0, interrupts.end), "started"]
    assert interrupts.message == "stopped; the same command goes on from the last checkpoint"
