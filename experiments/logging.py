"""Where a run's figures go: metrics.jsonl, TensorBoard and a progress bar.

Stable names: `train/<figure>` for every update, `validation/bleu` at each evaluation,
`samples/<number>` for translations as text.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from agents.learner import Record
from experiments.run import write_text
from textgen_env.tasks.task import Pair

SMOOTHING = 0.98  # of the loss in the progress bar
console = Console(stderr=True)


class RunLog:
    """Writes a run's figures, going on after the last checkpoint of a resumed run.

    Args:
        folder: the run's folder.
        title: shown before the progress bar.
        updates: of the whole run.
        done: updates already done; figures after them, of a run that was killed, are cut off.
    """

    def __init__(self, folder: Path, title: str, updates: int, done: int) -> None:
        self.folder, self.done = folder, done
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self.bar = self.progress.add_task(title, total=updates, completed=done, figures="")
        self.loss: float | None = None
        self.validation: float | None = None

    def __enter__(self) -> Self:
        path = self.folder / "metrics.jsonl"
        _cut_after(path, self.done)
        self.file = path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(self.folder, purge_step=self.done + 1)
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
        self.file.close()
        self.tensorboard.close()

    def __call__(self, update: int, record: Record) -> None:
        """Log the figures of an update or of an evaluation."""
        self.file.write(json.dumps({"update": update, **record}) + "\n")
        group = "validation" if "bleu" in record else "train"
        for name, value in record.items():
            self.tensorboard.add_scalar(f"{group}/{name}", value, update)
        if group == "validation":
            self.validation = record["bleu"]
            self.file.flush()
            self.tensorboard.flush()
        else:
            last = self.loss if self.loss is not None else record["loss"]
            self.loss = SMOOTHING * last + (1 - SMOOTHING) * record["loss"]
            self.progress.update(self.bar, completed=update, figures=self._figures(record))

    def samples(self, update: int, pairs: Sequence[Pair], hypotheses: Sequence[str]) -> None:
        """Log some translations as text."""
        for number, (pair, hypothesis) in enumerate(zip(pairs, hypotheses, strict=True)):
            text = f"source: {pair.source}  \nreference: {pair.reference}  \nstudent: {hypothesis}"
            self.tensorboard.add_text(f"samples/{number}", text, update)

    def _figures(self, record: Record) -> str:
        parts = [f"loss {self.loss:.3f}"]
        if "beta" in record:
            parts.append(f"beta {record['beta']:.2f} student {record['student_share']:.0%}")
        parts.append(f"lr {record['learning_rate']:.1e}")
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        if self.validation is not None:
            parts.append(f"BLEU {self.validation:.1f}")
        return "  ".join(parts)


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
