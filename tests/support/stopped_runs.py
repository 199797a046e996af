"""Small trainings by the real entry point that are stopped at random moments and begun again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

PROGRAM = "from textgen_experiments.program import main; main()"
SECONDS = 300  # until a process counts as stuck
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
UPDATES, EVERY = 200, 50
SETTINGS = [
    *("train", "--task", "copy", "--precision", "float32"),
    *("--task.num-words", "8", "--task.max-length", "5"),
    *("--task.num-train", "100", "--task.num-validation", "8", "--task.num-test", "8"),
    *("--student.width", "16", "--student.dropout", "0.2", "--learner.batch-size", "4"),
    *("--learner.updates", str(UPDATES), "--learner.evaluate-every", str(EVERY)),
]
MLE = ("--agent", "mle")


def start(folder, *launcher, agent=MLE):
    """Begin or resume the run in `folder`, in a session and process group of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-c", PROGRAM, *SETTINGS, *agent, "--output", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_first_line(process):
    """Return once the program has begun, which holds back SIGTERM first; then it answers it."""
    last = time.monotonic() + SECONDS
    while not _holds_or_answers(process.pid, signal.SIGTERM):
        assert time.monotonic() < last, "the program does not begin"
        time.sleep(0.001)


def _holds_or_answers(pid, number):
    """Return True if a process blocks, catches or ignores a signal, or has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    masks = [int(fields[name], 16) for name in ("SigBlk", "SigCgt", "SigIgn")]
    return fields["State"].startswith("Z") or any(mask >> number - 1 & 1 for mask in masks)


def finish(folder, agent=MLE):
    """Run to the end."""
    process = start(folder, agent=agent)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output


@dataclass(frozen=True)
class Stop:
    """A signal to a process, and how it ended.

    Attributes:
        number: the signal.
        moment: seconds from the program's first line to the signal.
        seconds: from the signal to the end.
        waited: seconds of these in which the main thread was ready and other work had the cores.
        code: exit code.
        output: standard output and error.
    """

    number: int
    moment: float
    seconds: float
    waited: float
    code: int
    output: str

    def check(self):
        """Raise unless the process ended as promised."""
        lines = [line for line in self.output.splitlines() if line.startswith("textgen: ")]
        assert "Traceback" not in self.output, self
        if self.number == signal.SIGKILL:
            assert self.code in (0, -signal.SIGKILL), self
        elif self.code == 0:  # it had done its work
            assert not lines, self
        else:
            assert self.code == CODES[self.number], self
            assert len(lines) == 1, self
            assert lines[0].startswith("textgen: stopped"), self
        assert self.seconds - self.waited <= 2, self


def stop(process, number, moment):
    """Send a signal, and wait for the end."""
    begun, waited_before = time.monotonic(), _seconds_waited(process.pid)
    process.send_signal(number)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        assert time.monotonic() - begun < SECONDS, "it does not end"
        time.sleep(0.005)
    seconds = time.monotonic() - begun
    waited = _seconds_waited(process.pid) - waited_before
    output, _ = process.communicate()
    return Stop(number, moment, seconds, waited, process.returncode, output)


def _seconds_waited(pid):
    """Return the seconds for which a process's main thread was ready to run and did not."""
    path = Path(f"/proc/{pid}/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


class StoppedRuns:
    """Runs that are stopped again and again until they end, each in a folder of its own.

    Args:
        root: folder of the folders.
        agent: options of the agent and of what it needs.
    """

    def __init__(self, root, agent=MLE):
        self.root, self.agent, self.whole = root, agent, {}
        begun = time.monotonic()
        finish(root / "unbroken", agent)
        self.seconds = time.monotonic() - begun

    def stop(self, count, signals, seed):
        """Return `count` stops; each run that ends meanwhile and the last one are compared."""
        moments, stops, runs = random.Random(seed), [], 0
        folder = self.root / f"stopped-{seed}-{runs}"
        while len(stops) < count:
            moment, number = moments.uniform(0, self.seconds), moments.choice(signals)
            process = start(folder, agent=self.agent)
            wait_for_first_line(process)
            try:
                process.wait(moment)
                output, _ = process.communicate()
                assert process.returncode == 0, output
            except subprocess.TimeoutExpired:
                stops.append(stop(process, number, moment))
            if process.returncode == 0:
                self.compare(folder)
                runs += 1
                folder = self.root / f"stopped-{seed}-{runs}"
        finish(folder, self.agent)
        self.compare(folder)
        return stops

    def compare(self, folder):
        """Raise unless a finished run is what one without a stop is, then remove it."""
        whole = self._unbroken(folder / "config.json")
        for file in ("model/model.safetensors", "checkpoints/last.safetensors"):
            found, expected = load_file(folder / file), load_file(whole / file)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected), file
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == UPDATES + UPDATES // EVERY
        litter = [path for path in folder.rglob("*") if ".partial" in str(path)]
        assert not litter, litter
        shutil.rmtree(folder)

    def _unbroken(self, config):
        """Return the folder of a run without a stop, with the arithmetic measured in `config`."""
        measured = json.loads(config.read_text())["onednn"]
        if measured not in self.whole:
            folder = self.root / f"unbroken-{measured}"
            folder.mkdir()
            shutil.copy(config, folder)
            finish(folder, self.agent)
            self.whole[measured] = folder
        return self.whole[measured]
