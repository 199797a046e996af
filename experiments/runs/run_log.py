"""Where a run's figures go: metrics.jsonl, TensorBoard and progress bars.

The names are stable and listed in docs/figures_logged.md.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

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
from torch.utils.tensorboard.summary import hparams

from textgen_agents.training.learner import Record
from textgen_env.tasks.task import Pair
from textgen_experiments.runs.folder import Leaf, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second that no other command shall wait for

METRICS = "metrics.jsonl"  # of a run: a line for each update and each evaluation
SMOOTHING = 0.98  # of the loss in the progress bar
EVALUATION = ".evaluation"  # ends the name of the events file that `evaluate` writes
COMPARED = (
    "bleu",
    "chrf",
    "rouge1",
    "rouge2",
    "rougeL",
    "exact_match",
    "tokens_per_second",
    "speedup_vs_teacher",
)
"""Figures of `evaluate` in TensorBoard's table of runs."""
console = Console(stderr=True)

Texts = Mapping[str, str | None]
"""What belongs together, by name; None where there is no such text."""


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
        self._instruments: Record = {}

    def __enter__(self) -> Self:
        path = self.folder / METRICS
        _cut_after(path, self.done)
        self.file = path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(self.folder, purge_step=self.done + 1)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.tensorboard.close()

    def __call__(self, update: int, record: Record) -> None:
        """Log the figures of an update or of an evaluation."""
        group = "validation" if "bleu" in record else "train"
        if group == "validation":
            record = {**record, **self._instruments}
        self.file.write(json.dumps({"update": update, **record}) + "\n")
        for name, value in record.items():
            self.tensorboard.add_scalar(f"{group}/{name}", value, update)
        if group == "validation":
            self.file.flush()
            self.tensorboard.flush()
        self.show(update, record)

    def instruments(self, figures: Record) -> None:
        """Note what is to be logged beside the BLEU of the present evaluation."""
        self._instruments = figures

    def samples(self, update: int, pairs: Sequence[Pair], hypotheses: Sequence[str]) -> None:
        """Log some translations as text."""
        for number, (pair, hypothesis) in enumerate(zip(pairs, hypotheses, strict=True)):
            named = {**pair._asdict(), "student": hypothesis}
            self.tensorboard.add_text(f"samples/{number}", _as_markdown(named), update)

    def finish(self, settings: dict[str, Leaf], outcome: Record) -> None:
        """Log what the run was made of and how it ended, so that TensorBoard compares runs.

        The figures of an evaluation are named, too: its tables show them once they are there.

        Args:
            settings: of the experiment, by name.
            outcome: final figures.
        """
        named = {f"final/{name}": value for name, value in outcome.items()}
        tested = dict.fromkeys((f"test/{name}" for name in COMPARED), 0.0)
        events = self.tensorboard.file_writer
        assert events is not None, "it is there until the writer is closed"
        for summary in hparams(settings, {**named, **tested}):
            events.add_summary(summary)
        for name, value in named.items():
            self.tensorboard.add_scalar(name, value)


def log_evaluation(
    folder: Path, figures: Record, samples: Sequence[Texts], picture: "Figure"
) -> None:
    """Put an evaluation's figures into TensorBoard, in the place of an earlier one's.

    Args:
        folder: the run's folder.
        figures: by name.
        samples: some test pairs and what was written for them.
        picture: quality against speed, of all runs that were evaluated together.
    """
    for old in folder.glob(f"events.out.tfevents.*{EVALUATION}"):
        old.unlink()
    with SummaryWriter(folder, filename_suffix=EVALUATION) as tensorboard:
        for name, value in figures.items():
            tensorboard.add_scalar(f"test/{name}", value)
        for number, sample in enumerate(samples):
            tensorboard.add_text(f"test_samples/{number}", _as_markdown(sample))
        tensorboard.add_figure("pareto", picture, close=False)


def _as_markdown(texts: Texts) -> str:
    """A line for each text that there is, after its name."""
    return "  \n".join(f"{name}: {text}" for name, text in texts.items() if text is not None)


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
