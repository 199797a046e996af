"""Where a run's figures go: metrics.jsonl, TensorBoard and progress bars.

Stable names: `train/<figure>` for every update, `validation/bleu` at each evaluation,
`samples/<number>` for translations as text.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from agents.learner import Record
from experiments.run import write_text
from textgen_env.tasks.task import Pair

SMOOTHING = 0.98  # of the loss in the progress bar
console = Console(stderr=True)


class Bars:
    """A progress bar for each run, with its figures, to be seen once there is one to show."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self.runs: dict[str, _Shown] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress.live.is_started:
            self.progress.stop()

    def add(self, title: str, updates: int) -> None:
        """Make room for a run of so many updates."""
        bar = self.progress.add_task(title, total=updates, figures="", visible=False)
        self.runs[title] = _Shown(bar)

    def finish(self, title: str, summary: str) -> None:
        """Put a line in the place of a run's bar."""
        self.progress.remove_task(self.runs.pop(title).bar)
        console.print(f"{title}: {summary}")

    def show(self, title: str, update: int, record: Record) -> None:
        """Show the figures of an update or of an evaluation."""
        self.progress.start()
        run = self.runs[title]
        if "bleu" in record:
            run.validation = record["bleu"]
            return
        last = record["loss"] if run.loss is None else run.loss
        run.loss = SMOOTHING * last + (1 - SMOOTHING) * record["loss"]
        figures = run.figures(record)
        self.progress.update(run.bar, completed=update, figures=figures, visible=True)


@dataclass
class _Shown:
    """What a bar shows: the loss, smoothed, and the last validation BLEU."""

    bar: TaskID
    loss: float | None = None
    validation: float | None = None

    def figures(self, record: Record) -> str:
        parts = [f"loss {self.loss:.3f}"]
        if "beta" in record:
            parts.append(f"beta {record['beta']:.2f} student {record['student_share']:.0%}")
        parts.append(f"lr {record['learning_rate']:.1e}")
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        if self.validation is not None:
            parts.append(f"BLEU {self.validation:.1f}")
        return "  ".join(parts)


class RunLog:
    """Writes a run's figures, going on after the last checkpoint of a resumed run.

    Args:
        folder: the run's folder.
        done: updates already done; figures after them, of a run that was killed, are cut off.
        show: is called with every update and its figures, to be looked at.
    """

    def __init__(self, folder: Path, done: int, show: Callable[[int, Record], None]) -> None:
        self.folder, self.done, self.show = folder, done, show

    def __enter__(self) -> Self:
        path = self.folder / "metrics.jsonl"
        _cut_after(path, self.done)
        self.file = path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(self.folder, purge_step=self.done + 1)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.tensorboard.close()

    def __call__(self, update: int, record: Record) -> None:
        """Log the figures of an update or of an evaluation."""
        self.file.write(json.dumps({"update": update, **record}) + "\n")
        group = "validation" if "bleu" in record else "train"
        for name, value in record.items():
            self.tensorboard.add_scalar(f"{group}/{name}", value, update)
        if group == "validation":
            self.file.flush()
            self.tensorboard.flush()
        self.show(update, record)

    def samples(self, update: int, pairs: Sequence[Pair], hypotheses: Sequence[str]) -> None:
        """Log some translations as text."""
        for number, (pair, hypothesis) in enumerate(zip(pairs, hypotheses, strict=True)):
            text = f"source: {pair.source}  \nreference: {pair.reference}  \nstudent: {hypothesis}"
            self.tensorboard.add_text(f"samples/{number}", text, update)


def _cut_after(path: Path, update: int) -> None:
    """Drop the lines of updates after `update`, and a last line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["update"] > update:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; call what it gives once for each piece of work done."""
    with Progress(console=console, transient=True) as bars:
        bar = bars.add_task(title, total=total)
        yield lambda: bars.advance(bar)
