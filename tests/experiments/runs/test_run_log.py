"""The log of a run, read back from its files, and the names on the console."""

import ast
import contextlib
import html
import json
import queue
import re
import threading
import time
from errno import ENOSPC
from pathlib import Path

import markdown
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from textgen_env.files import WriteError
from textgen_env.tasks.task import Pair
from textgen_experiments.runs import run_log
from textgen_experiments.runs.folder import flat
from textgen_experiments.runs.run_log import RunLog

PACKAGES = [Path(__file__).parents[3] / name for name in ("textgen_env", "agents", "experiments")]


class ShownFigures(list):
    """Figures that were shown, in order."""

    def __call__(self, update, record):
        self.append((update, dict(record)))


@pytest.fixture
def shown():
    return ShownFigures()


def updates(log, first, last, evaluations=()):
    """Log updates with their number as the loss, and evaluations after some of them."""
    for update in range(first, last + 1):
        log(update, {"loss": float(update)})
        if update in evaluations:
            log.diagnostics({"student_prefix_agreement": update / 10})
            log.samples(update, [Pair("in", "out")], [f"text {update}"])
            log(update, {"bleu": 10.0 * update})


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder, name):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_diagnostics_stand_beside_the_bleu_of_their_evaluation(tmp_path, shown):
    with RunLog(tmp_path, 0, shown) as log:
        updates(log, 1, 3, evaluations=(2,))
    evaluation = {"bleu": 20.0, "student_prefix_agreement": 0.2}
    assert lines(tmp_path)[2] == {"update": 2, **evaluation}
    assert [each for each in shown if "bleu" in each[1]] == [(2, evaluation)]
    assert scalars(tmp_path, "validation/bleu") == [(2, 20.0)]
    assert scalars(tmp_path, "validation/student_prefix_agreement") == [(2, 0.2)]
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_samples_are_readable_text(tmp_path, shown):
    with RunLog(tmp_path, 0, shown) as log:
        updates(log, 1, 1, evaluations=(1,))
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("samples/0/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["source: in  ", "reference: out  ", "student: text 1"]


def test_what_a_killed_run_logged_after_its_checkpoint_is_forgotten_everywhere(tmp_path, shown):
    with RunLog(tmp_path, 0, shown) as log:
        updates(log, 1, 5, evaluations=(2, 4))  # the last checkpoint is of update 2
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 6, "lo')
    with RunLog(tmp_path, 2, shown) as log:
        updates(log, 3, 4, evaluations=(4,))
    assert [record["update"] for record in lines(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert scalars(tmp_path, "validation/student_prefix_agreement") == [(2, 0.2), (4, 0.4)]


def test_each_line_is_in_the_file_once_it_is_logged(tmp_path, shown):
    with RunLog(tmp_path, 0, shown) as log:
        for update in (1, 2):
            updates(log, update, update)
            assert [record["update"] for record in lines(tmp_path)] == [*range(1, update + 1)]


def test_settings_are_named_by_their_path():
    nested = {"a": {"type": "A", "none": None, "sizes": [3, {"b": True}]}, "c": 0.5}
    assert flat(nested) == {"a.type": "A", "a.sizes.0": 3, "a.sizes.1.b": True, "c": 0.5}


def calls_of(name):
    """Yield the place and the call of each call of `name` in the packages."""
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                    yield f"{path.name}:{node.lineno}", node


@pytest.mark.parametrize(
    ("name", "options"), [("Console", {"markup", "emoji"}), ("TextColumn", {"markup"})]
)
def test_no_console_and_no_bar_reads_markup(name, options):
    calls = dict(calls_of(name))
    assert calls
    for place, call in calls.items():
        switched = {each.arg for each in call.keywords if ast.unparse(each.value) == "False"}
        assert options <= switched, place


@pytest.mark.parametrize("name", ["status", "add_column", "add_row", "Panel"])
def test_what_always_reads_markup_is_given_constants_or_texts(name):
    for place, call in calls_of(name):
        first = call.args[0]
        assert isinstance(first, ast.Constant) or "Text" in ast.unparse(first), place


@pytest.mark.parametrize("text", ["*a* _b_ `c`", "<b>&amp;</b>", "[x](y) ![z](w)", "\\*", "a\n# b"])
def test_tensorboard_shows_texts_as_they_are(tmp_path, shown, text):
    with RunLog(tmp_path, 0, shown) as log:
        log.samples(1, [Pair(text, "out")], ["student"])
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("samples/0/text_summary")
    page = markdown.markdown(event.tensor_proto.string_val[0].decode())
    seen = html.unescape(re.sub("</?p>|<br />", "", page))
    assert seen.splitlines()[0] == f"source: {text}".replace("\n", " ")


def log_until_the_disk_is_full(folder, shown):
    """Log updates, of which TensorBoard's file has room for a few."""
    with RunLog(folder, 0, shown) as log:
        events = log.tensorboard.file_writer.event_writer._async_writer._writer

        def full(data):
            raise OSError(ENOSPC, "No space left on device")

        events.write = full
        for update in range(1, 2000):
            updates(log, update, update, evaluations=[update])


def test_a_disk_that_fills_up_ends_the_log_with_one_error(tmp_path, shown, capsys):
    hook = threading.excepthook
    with pytest.raises(WriteError, match=r"metrics\.jsonl must be written, got: No space left"):
        log_until_the_disk_is_full(tmp_path, shown)
    assert "Traceback" not in capsys.readouterr().err
    assert threading.excepthook is hook


@pytest.mark.parametrize(
    ("limit", "raised"), [("CLOSE_SECONDS", None), ("STOPPED_SECONDS", KeyboardInterrupt)]
)
def test_a_log_whose_writer_waits_forever_is_closed_in_time(
    tmp_path, shown, monkeypatch, limit, raised
):
    for name in ("CLOSE_SECONDS", "STOPPED_SECONDS"):
        monkeypatch.setattr(run_log, name, 0.2 if name == limit else 60)
    never, begun = queue.Queue(), time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), RunLog(tmp_path, 0, shown) as log:
        updates(log, 1, 1)
        monkeypatch.setattr(log.tensorboard, "close", never.get)
        if raised:
            raise raised
    assert 0.2 <= time.monotonic() - begun < 30
    assert len(lines(tmp_path)) == 1
    never.put(None)
