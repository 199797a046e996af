"""Programs that are stopped by Ctrl-C or SIGTERM at random moments, by the real entry point."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from textgen_experiments.runs.interrupts import GOES_ON, Interrupts

PROGRAM = "from textgen_experiments.program import main; main()"
FIRST_MOMENT = 0.1  # seconds; before, the interpreter itself is starting
SECONDS = 120  # until a run that is not stopped counts as stuck
SECONDS_TO_STOP = 10  # on a machine that does other work; a few tenths of a second otherwise
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
COMMAND = [
    *("train", "--task", "copy", "--agent", "mle", "--precision", "float32"),
    *("--task.num-words", "8", "--task.max-length", "5"),
    *("--task.num-train", "100", "--task.num-validation", "8", "--task.num-test", "8"),
    *("--student.width", "16", "--student.dropout", "0.2", "--learner.batch-size", "4"),
    *("--learner.updates", "600", "--learner.evaluate-every", "150"),
]


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *COMMAND, "--output", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop(process, number):
    """Send a signal, and return the output of the program, which ends soon."""
    process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return output


def assert_stopped(process, number, output):
    assert process.returncode == CODES[number], output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("textgen: stopped")


def finish(folder):
    process = start(folder)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder of a run that nothing stopped, and the seconds that it took."""
    folder, begun = tmp_path_factory.mktemp("runs") / "unbroken", time.monotonic()
    finish(folder)
    return folder, time.monotonic() - begun


@pytest.mark.slow
def test_a_run_that_is_stopped_at_any_moment_ends_with_the_same_weights(unbroken, tmp_path):
    whole, seconds = unbroken
    moments, folder = random.Random(0), tmp_path / "stopped"
    for _ in range(12):
        number, process = moments.choice(list(CODES)), start(folder)
        time.sleep(moments.uniform(FIRST_MOMENT, seconds))
        running = process.poll() is None
        output = stop(process, number)
        if running and process.returncode != 0:
            assert_stopped(process, number, output)
    finish(folder)
    for file in ("model/model.safetensors", "checkpoints/last.safetensors"):
        resumed, expected = load_file(folder / file), load_file(whole / file)
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(resumed[name], expected[name]) for name in expected), file
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 604
    assert not [path for path in folder.rglob("*") if ".partial" in str(path)]


def wait_for(path):
    last = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < last, f"no {path}"
        time.sleep(0.01)


@pytest.mark.parametrize("number", CODES)
def test_training_stops_between_updates_with_a_checkpoint(tmp_path, number):
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.jsonl")
    output = stop(process, number)
    assert_stopped(process, number, output)
    assert output.endswith(f"textgen: stopped{GOES_ON}\n")
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
