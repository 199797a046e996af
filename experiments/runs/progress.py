"""Display of what a command is doing, on standard error: bars on a terminal, lines elsewhere.

A file or a pipe gets lines of any length, each complete in itself. Results go to standard output
and are not written here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from textgen_agents.training.learner import Record
from textgen_experiments.runs.score_names import SCORE_NAMES

SMOOTHING = 0.9  # of the loss: a mean of some ten updates
LINES_OF_A_RUN = 20  # where there is no terminal, besides one for each evaluation
LONGEST_SILENCE = 30.0  # seconds between two lines of work that takes longer
SHORTEST_ESTIMATE = 1.0  # seconds to estimate from: reports of another process come in bunches
console = Console(stderr=True, markup=False, emoji=False)  # names are shown as they are


def tell(message: str) -> None:
    """Print a message in one line on standard error, however long, unless `be_quiet` was called."""
    console.print(message, soft_wrap=True)


def be_quiet() -> None:
    """Print no messages and no progress from now on."""
    console.quiet = True


@dataclass
class RunFigures:
    """Figures of a run that is in progress.

    Attributes:
        total: number of its updates.
        update: the last one that was done.
        loss: loss, smoothed over the updates; None before the first.
        validation: scores of the last evaluation as text; empty before the first.
        record: figures of the last update.
    """

    total: int
    update: int = 0
    loss: float | None = None
    validation: str = ""
    record: Record | None = None

    def add(self, update: int, record: Record) -> None:
        """Note the figures of an update or of an evaluation."""
        if "loss" not in record:
            scores = [score for score in SCORE_NAMES.values() if score.figure in record]
            self.validation = "  ".join(
                score.words(score.shown(record[score.figure])) for score in scores
            )
            return
        last = record["loss"] if self.loss is None else self.loss
        self.loss = SMOOTHING * last + (1 - SMOOTHING) * record["loss"]
        self.update, self.record = update, record

    def text(self) -> str:
        """Return the figures as text, empty before the first."""
        parts = []
        if (record := self.record) is not None:
            parts.append(f"loss {self.loss:.3f}")
            if "beta" in record:
                parts.append(f"beta {record['beta']:.2f} student {record['student_share']:.0%}")
            parts.append(f"lr {record['learning_rate']:.1e}")
            parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        if self.validation:
            parts.append(self.validation)
        return "  ".join(parts)


class RunsDisplay(ABC):
    """Display of the progress of runs by their titles, a context in which it is shown."""

    def __init__(self) -> None:
        self.runs: dict[str, RunFigures] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End the display, and leave what was shown last."""

    def add(self, title: str, updates: int) -> None:
        """Add a run of `updates` updates, shown from its first update on."""
        self.runs[title] = RunFigures(updates)

    @abstractmethod
    def show_all(self) -> None:
        """Show all runs at once, those that wait or prepare their data too, and their total."""

    @abstractmethod
    def show(self, title: str, update: int, record: Record) -> None:
        """Show the figures of an update or of an evaluation."""

    @abstractmethod
    def note(self, title: str, preparation: str) -> None:
        """Show how far the preparation of a run's data is."""

    def finish(self, title: str, summary: str) -> None:
        """Show the summary of a run that has ended in place of its progress."""
        del self.runs[title]
        tell(f"{title}: {summary}")


def runs_display() -> RunsDisplay:
    """Return bars if standard error is a terminal, else lines."""
    return Bars() if console.is_terminal and not console.quiet else Lines()


class Bars(RunsDisplay):
    """Progress bars with figures, one for each run, and one of all runs where there are several."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
        )
        self.bars: dict[str, TaskID] = {}
        self.all: TaskID | None = None

    def close(self) -> None:
        """Leave the bars as they are."""
        if self.progress.live.is_started:
            self.progress.stop()

    def add(self, title: str, updates: int) -> None:
        """Add a bar for a run of `updates` updates."""
        super().add(title, updates)
        self.bars[title] = self.progress.add_task(title, total=updates, figures="", visible=False)

    def show_all(self) -> None:
        """Show the bars of all runs, those that wait or prepare their data too, and their total."""
        if len(self.runs) > 1:
            total = sum(run.total for run in self.runs.values())
            self.all = self.progress.add_task("all", total=total, figures="")
        for bar in self.bars.values():
            self.progress.update(bar, visible=True, figures="waiting, or preparing its data")
        self.progress.start()

    def note(self, title: str, preparation: str) -> None:
        """Show how far the preparation of a run's data is beside its bar."""
        self.progress.update(self.bars[title], figures=preparation)

    def finish(self, title: str, summary: str) -> None:
        """Replace a run's bar by a line with its summary."""
        run = self.runs[title]
        self._count(run.total - run.update, is_done_now=run.update > 0)
        self.progress.remove_task(self.bars.pop(title))
        super().finish(title, summary)

    def show(self, title: str, update: int, record: Record) -> None:
        """Show the figures of an update or of an evaluation."""
        self.progress.start()
        run = self.runs[title]
        before = run.update
        run.add(update, record)
        self._count(run.update - before, is_done_now=before > 0 or run.update == 1)
        bar = self.bars[title]
        self.progress.update(bar, completed=run.update, figures=run.text(), visible=True)

    def _count(self, updates: int, *, is_done_now: bool) -> None:
        """Count updates in the total of all runs; those of before tell nothing about its speed."""
        if self.all is None or not updates:
            return
        if is_done_now:
            self.progress.advance(self.all, updates)
        else:
            (total,) = (task for task in self.progress.tasks if task.id == self.all)
            self.progress.reset(self.all, completed=int(total.completed) + updates)


class Lines(RunsDisplay):
    """Lines with figures and the time left: of each evaluation, and of updates in between."""

    def __init__(self) -> None:
        super().__init__()
        self.clocks: dict[str, Clock] = {}

    def close(self) -> None:
        """Leave the lines as they are."""

    def show_all(self) -> None:
        """Name the runs and their number of updates."""
        named = ", ".join(f"{title} ({run.total:,} updates)" for title, run in self.runs.items())
        tell(f"training {named}")

    def note(self, title: str, preparation: str) -> None:
        """Print how far the preparation of a run's data is."""
        tell(f"{title}: {preparation}")

    def show(self, title: str, update: int, record: Record) -> None:
        """Print a line for an evaluation, and for an update if the last line was long ago."""
        run = self.runs[title]
        clock = self.clocks.setdefault(title, Clock(run.total, update))
        run.add(update, record)
        every = max(1, run.total // LINES_OF_A_RUN)
        if "bleu" in record or update % every == 0 or clock.is_silent():
            clock.speak()
            tell(f"{title}: {update:,}/{run.total:,}  {run.text()}{clock.left(update)}")


class Clock:
    """Time that is left of work whose steps take equally long.

    Args:
        total: number of steps.
        done: steps that were done before the clock began.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.first = total, done
        self.begun = self.spoken = monotonic()

    def left(self, done: int) -> str:
        """Return the time left as the end of a line, empty as long as too little is known."""
        passed = monotonic() - self.begun
        if done == self.first or passed < SHORTEST_ESTIMATE:
            return ""
        seconds = passed * (self.total - done) / (done - self.first)
        return f"  {timedelta(seconds=round(seconds))} left"

    def is_silent(self) -> bool:
        """Return True if nothing was said for as long as nothing should be."""
        return monotonic() - self.spoken >= LONGEST_SILENCE

    def speak(self) -> None:
        """Note that something was said now."""
        self.spoken = monotonic()


class Advance(Protocol):
    """Counter of the steps that were done since its last call."""

    def __call__(self, steps: int = 1) -> None:
        """Count further steps as done."""
        ...


Say = Callable[[str], None]
_told_elsewhere: ContextVar[Say | None] = ContextVar("progress_listener", default=None)


@contextmanager
def progress_told_to(listener: Say) -> Iterator[None]:
    """Tell `listener` the progress of long work in the block, in lines, and show nothing."""
    token = _told_elsewhere.set(listener)
    try:
        yield
    finally:
        _told_elsewhere.reset(token)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show the progress of `total` steps while the block lasts, with the time left.

    Args:
        title: says what is done.
        total: number of steps.

    Yields:
        A function to be called after one or several steps.
    """
    listener = _told_elsewhere.get()
    if listener is None and console.is_terminal and not console.quiet:
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _line_writer(title, total, listener or tell)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    """Show a bar, which is gone after the block."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(title, total=total)
        yield lambda steps=1: bars.advance(bar, steps)


def _line_writer(title: str, total: int, say: Say) -> Advance:
    """Return a function that counts steps and says a line if there was none for long."""
    clock, done = Clock(total), 0

    def advance(steps: int = 1) -> None:
        nonlocal done
        done += steps
        if clock.is_silent():
            clock.speak()
            say(f"{title}: {done:,}/{total:,}{clock.left(done)}")

    return advance
