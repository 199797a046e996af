"""Log of a run: metrics.jsonl and TensorBoard.

The names of figures are listed in docs/figures_logged.md.
"""

import html
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Self

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from textgen_agents.training.learner import Record
from textgen_env.files import naming_write_errors
from textgen_env.tasks.lines import in_one_line
from textgen_env.tasks.task import Pair
from textgen_experiments.runs.folder import Leaf
from textgen_experiments.runs.metrics import METRICS, forget_after, metrics_line, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to import

BY_LINES = 1  # `open` writes each line as soon as it is whole
CLOSE_SECONDS = 10.0  # that the end of a run waits for TensorBoard's writer
STOPPED_SECONDS = 1.0  # the same for a run that an exception or a signal ends
EVALUATION = ".evaluation"  # suffix of the events file that `evaluate` writes
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

_MARKDOWN = re.compile(r"[\\`*_{}\[\]]")

NamedTexts = Mapping[str, str | None]
"""Texts of one sample by name, such as "source"; None for a text that is missing."""


class RunLog:
    """Writer of a run's figures, which continues after the last checkpoint of a resumed run.

    Args:
        folder: the run's folder.
        done: number of updates at the last checkpoint; later figures of a killed run are dropped.
        show: called with the number and the figures of every update, to display them.
    """

    def __init__(self, folder: Path, done: int, show: Callable[[int, Record], None]) -> None:
        self.folder, self.done, self.show = folder, done, show
        self._diagnostics: Record = {}

    def __enter__(self) -> Self:
        path = self.folder / METRICS
        with ExitStack() as opened, naming_write_errors(path):
            opened.enter_context(_quiet_threads())
            forget_after(self.folder, self.done)
            self.file = opened.enter_context(path.open("a", buffering=BY_LINES, encoding="utf-8"))
            self.tensorboard = SummaryWriter(self.folder, purge_step=self.done + 1)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with naming_write_errors(self.folder / METRICS), self._opened:
            _close(self.tensorboard, CLOSE_SECONDS if kind is None else STOPPED_SECONDS)

    def __call__(self, update: int, record: Record) -> None:
        """Log the figures of an update or of an evaluation.

        Raises:
            WriteError: the file, or TensorBoard's beside it, cannot be written.
        """
        group = "train" if "loss" in record else "validation"
        if group == "validation":
            record = {**record, **self._diagnostics}
        with naming_write_errors(self.folder / METRICS):
            self._write(group, update, record)
        self.show(update, record)

    def _write(self, group: str, update: int, record: Record) -> None:
        self.file.write(metrics_line({"update": update, **record}))
        for name, value in record.items():
            self.tensorboard.add_scalar(f"{group}/{name}", value, update)
        if group == "validation":
            self.tensorboard.flush()

    def diagnostics(self, figures: Record) -> None:
        """Keep the diagnostics of the current evaluation, to be logged beside its BLEU."""
        self._diagnostics = figures

    def bleu_at(self, update: int) -> float:
        """Return the BLEU of the evaluation after an update, which has been logged.

        Raises:
            ValueError: no evaluation after that update is in the file.
        """
        for record in read_metrics(self.folder):
            if record["update"] == update and "bleu" in record:
                return record["bleu"]
        raise ValueError(f"update must be one with an evaluation in {METRICS}, got {update}")

    def samples(self, update: int, pairs: Sequence[Pair], hypotheses: Sequence[str]) -> None:
        """Log some pairs with the student's texts."""
        for number, (pair, hypothesis) in enumerate(zip(pairs, hypotheses, strict=True)):
            named = {**pair._asdict(), "student": hypothesis}
            self.tensorboard.add_text(f"samples/{number}", _as_markdown(named), update)

    def finish(self, settings: dict[str, Leaf], outcome: Record) -> None:
        """Log the run's settings and final figures, so that TensorBoard compares runs.

        The names of `evaluate`'s figures are logged, too: TensorBoard shows them once they exist.

        Args:
            settings: of the experiment, by name.
            outcome: final figures.
        """
        named = {f"final/{name}": value for name, value in outcome.items()}
        tested = dict.fromkeys((f"test/{name}" for name in COMPARED), 0.0)
        events = self.tensorboard.file_writer
        assert events is not None, "the writer is open within the context"
        for summary in hparams(settings, {**named, **tested}):
            events.add_summary(summary)
        for name, value in named.items():
            self.tensorboard.add_scalar(name, value)


def log_evaluation(
    folder: Path, figures: Record, samples: Sequence[NamedTexts], picture: "Figure"
) -> None:
    """Write an evaluation's figures for TensorBoard, and remove those of an earlier evaluation.

    Args:
        folder: the run's folder.
        figures: by name.
        samples: some test pairs with the texts written for them.
        picture: quality against speed, of all runs that were evaluated together.
    """
    with naming_write_errors(folder):
        _replace_events(folder, figures, samples, picture)


def _replace_events(
    folder: Path, figures: Record, samples: Sequence[NamedTexts], picture: "Figure"
) -> None:
    for old in folder.glob(f"events.out.tfevents.*{EVALUATION}"):
        old.unlink()
    with SummaryWriter(folder, filename_suffix=EVALUATION) as tensorboard:
        for name, value in figures.items():
            tensorboard.add_scalar(f"test/{name}", value)
        for number, sample in enumerate(samples):
            tensorboard.add_text(f"test_samples/{number}", _as_markdown(sample))
        tensorboard.add_figure("pareto", picture, close=False)


def _close(writer: SummaryWriter, seconds: float) -> None:
    """Close TensorBoard's writer, which waits forever where an exception cut its queue short.

    Args:
        writer: the writer.
        seconds: longest time that it may take.

    Raises:
        OSError: the file could not be written.
    """
    failures: list[OSError] = []

    def close() -> None:
        try:
            writer.close()
        except OSError as error:
            failures.append(error)

    closing = Thread(target=close, daemon=True)
    closing.start()
    closing.join(seconds)
    if failures:
        raise failures[0]


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no error of the operating system that ends TensorBoard's thread.

    The next call of the writer raises it.
    """
    before = threading.excepthook

    def show(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):
            before(failure)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before


def _as_markdown(texts: NamedTexts) -> str:
    """Return a line for each text that is not None, after its name."""
    return "  \n".join(
        f"{name}: {_escaped(text)}" for name, text in texts.items() if text is not None
    )


def _escaped(text: str) -> str:
    """Return `text` in one line that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(in_one_line(text), quote=False))
