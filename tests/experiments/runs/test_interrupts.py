"""Programs that are stopped by Ctrl-C or SIGTERM at random moments, by the real entry point."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from threading import Timer

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


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_training_stops_between_updates_with_a_checkpoint(tmp_path, number):
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.jsonl")
    stopped = stop(process, number, moment=0.0)
    stopped.check()
    assert stopped.output.endswith(f"textgen: stopped{GOES_ON}\n")
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()


@pytest.mark.slow
def test_torchrun_hands_the_signal_on_and_the_run_has_a_checkpoint(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python")
    process = start(tmp_path / "run", *launcher, sys.executable)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS)
    assert f"textgen: stopped{GOES_ON}\n" in output
    assert "exitcode: -" not in output
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()


def run_script(script, *, when=None):
    """Return exit code and output of a script, which gets SIGTERM once it has written `when`."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if when is not None:
        assert process.stdout.readline() == when
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def test_a_signal_before_the_first_import_is_answered():
    script = """
import os, signal
from textgen_experiments.program import main
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
main()
"""
    assert run_script(script) == (143, "textgen: stopped\n")


FINISHED = """
import atexit, sys, time
from textgen_experiments.runs.interrupts import INTERRUPTS, answer_signals

def wait(seconds, sleep=time.sleep, write=sys.stdout.write, flush=sys.stdout.flush):
    write("ending\\n")
    flush()
    sleep(seconds)

class Slow:
    def __del__(self, wait=wait):
        wait(0.3)

answer_signals()
with INTERRUPTS.finishing():
    {how}
    sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 2, None])
@pytest.mark.parametrize("how", ["atexit.register(wait, 60)", "sys.slow = Slow()"])
def test_a_signal_after_the_work_does_not_change_how_it_ended(how, code):
    script = FINISHED.format(how=how, code=code)
    assert run_script(script, when="ending\n") == (code or 0, "")


def test_a_program_whose_main_thread_is_held_ends_by_its_watch():
    script = """
import hashlib, threading
from textgen_experiments.runs.interrupts import INTERRUPTS, answer_signals
answer_signals()
with INTERRUPTS.unwinding(is_resumable=False):
    threading.Timer(0.2, print, ["begun"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
    assert run_script(script, when="begun\n") == (143, "textgen: stopped\n")


@pytest.fixture
def ended(monkeypatch):
    """Exit codes of programs that would have ended."""
    codes = []
    monkeypatch.setattr(Interrupts, "tell", lambda self: None)

    def end(code):
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    return codes


@pytest.fixture
def moment(monkeypatch):
    """Return a function that sets the time."""

    def set_time(seconds):
        monkeypatch.setattr("textgen_experiments.runs.interrupts.monotonic", lambda: seconds)

    set_time(100.0)
    return set_time


def test_a_signal_is_noted_where_it_is_awaited_and_the_second_ends_at_once(ended, moment):
    interrupts = Interrupts()
    interrupts.is_awaited = True
    interrupts.answer(signal.SIGINT, None)
    assert interrupts.is_stopping()
    moment(100.6)
    assert not ended
    with pytest.raises(SystemExit):
        interrupts.answer(signal.SIGTERM, None)
    assert ended == [130]


@pytest.mark.parametrize("second", CODES)
def test_a_signal_that_comes_by_two_ways_is_one(ended, moment, second):
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.unwinding(is_resumable=True):
        interrupts.answer(signal.SIGINT, None)
    moment(100.4)
    interrupts.answer(second, None)
    assert not ended
    assert interrupts.exit_code == 130


def test_a_process_that_another_one_began_stops_where_it_is_awaited(ended):
    interrupts = Interrupts(is_awaited=True)
    for _ in range(2):
        interrupts.obey(signal.SIGTERM, None)
    assert interrupts.is_stopping()
    assert not ended
    interrupts.is_awaited = False
    with pytest.raises(SystemExit):
        interrupts.obey(signal.SIGTERM, None)
    assert ended == [143]


def test_a_signal_after_the_last_look_stops_what_follows():
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.awaited():
        interrupts.answer(signal.SIGTERM, None)
    assert interrupts.exit_code == 143


def test_a_signal_before_a_command_runs_ends_the_program(ended):
    with pytest.raises(SystemExit):
        Interrupts().answer(signal.SIGTERM, None)
    assert ended == [143]


@pytest.fixture
def signaled():
    """Yield a pipe that a signal was written to."""
    reading, writing = os.pipe()
    os.write(writing, bytes([signal.SIGINT]))
    yield reading
    os.close(reading)
    os.close(writing)


def test_a_command_that_does_not_end_by_itself_is_ended(ended, signaled):
    interrupts, begun = Interrupts(received=signal.SIGINT), time.monotonic()
    with pytest.raises(SystemExit):
        interrupts.watch(signaled)
    assert ended == [130]
    assert time.monotonic() - begun >= 1.4


def test_work_that_is_awaited_has_its_time(ended, signaled, monkeypatch):
    monkeypatch.setattr("textgen_experiments.runs.interrupts.UNWINDING_SECONDS", 0.1)
    interrupts = Interrupts(received=signal.SIGINT, is_awaited=True)

    def leave():
        assert not ended
        interrupts.is_awaited = False

    Timer(0.4, leave).start()
    with pytest.raises(SystemExit):
        interrupts.watch(signaled)
    assert not interrupts.is_awaited


def test_the_message_says_how_to_go_on():
    interrupts = Interrupts()
    with interrupts.unwinding(is_resumable=True):
        assert interrupts.message.endswith("the same command goes on from the last checkpoint")
    with interrupts.unwinding(is_resumable=False):
        assert interrupts.message == "stopped"
