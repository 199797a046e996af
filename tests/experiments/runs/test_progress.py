"""Progress on standard error: bars on a terminal, whole lines elsewhere, nothing when quiet."""

from dataclasses import replace

import pytest
from rich.console import Console

from textgen_experiments.runs import progress as display
from textgen_experiments.runs.factories import report_dropped
from textgen_experiments.runs.progress import (
    Bars,
    Clock,
    Lines,
    progress,
    progress_told_to,
    runs_display,
    tell,
)

NAMES = ["[/de]", "[lr=1]x", "[bold]a[/bold]", ":snake:", "back\\[red]\\", "{task.total}"]
FIGURES = {"loss": 2.0, "learning_rate": 1e-3, "tokens_per_second": 1234.0}


@pytest.fixture
def terminal(monkeypatch):
    """Let standard error be a terminal of 200 columns."""
    wide = Console(stderr=True, markup=False, emoji=False, force_terminal=True, width=200)
    monkeypatch.setattr(display, "console", wide)


@pytest.fixture
def clock(monkeypatch):
    """Return a list with the present time in seconds, which only the test moves."""
    now = [0.0]
    monkeypatch.setattr(display, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Bars, Lines])
def test_the_console_shows_names_as_they_are(name, kind, tiny_task, capsys):
    report_dropped(replace(tiny_task, name=name, dropped={f"over {name}": 2}))
    with kind() as runs:
        runs.add(name, 2)
        runs.show(name, 1, FIGURES)
        runs.close()
        shown = capsys.readouterr().err
        runs.finish(name, f"BLEU {name}")
    told = capsys.readouterr().err
    assert shown.startswith(f"{name}: 64 training, ")
    assert f"left out: 2 over {name}\n{name}" in shown
    assert f"{name}: BLEU {name}\n" in told


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_its_title_as_it_is(name, terminal, capsys):
    with progress(name, 2) as advance:
        advance()
    assert name in capsys.readouterr().err


def test_a_file_gets_twenty_lines_a_run_and_one_for_each_evaluation(clock, capsys):
    title = "run " + 300 * "x"
    with runs_display() as runs:
        runs.add(title, 400)
        for update in range(1, 401):
            clock[0] += 1.5
            runs.show(title, update, FIGURES)
            if update % 150 == 0:
                runs.show(title, update, {"bleu": update / 10, "length_ratio": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20 + 2
    figures = "loss 2.000  lr 1.0e-03  1,234 tokens/s"
    assert lines[0] == f"{title}: 20/400  {figures}  0:09:30 left"
    assert lines[7] == f"{title}: 150/400  {figures}  BLEU 15.0  0:06:15 left"
    assert lines[-1] == f"{title}: 400/400  {figures}  BLEU 30.0  0:00:00 left"


def test_no_update_is_silent_for_long(clock, capsys):
    with runs_display() as runs:
        runs.add("slow", 1000)
        for update in range(1, 8):
            clock[0] += display.LONGEST_SILENCE / 2
            runs.show("slow", update, FIGURES)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [
        "3/1,000",
        "5/1,000",
        "7/1,000",
    ]


def test_steps_are_told_with_the_time_left_when_they_take_long(clock, capsys):
    with progress("writing", 10) as advance:
        advance(2)
        clock[0] += 60
        advance(2)
        advance()
    assert capsys.readouterr().err == "writing: 4/10  0:01:30 left\n"


def test_progress_of_another_process_is_told_and_shown_beside_its_run(clock, terminal, capsys):
    said = []
    with progress_told_to(said.append), progress("writing", 10) as advance:
        clock[0] += 60
        advance(4)
    assert said == ["writing: 4/10  0:01:30 left"]
    assert capsys.readouterr().err == ""
    with runs_display() as runs:
        runs.add("run", 5)
        runs.show_all()
        runs.note("run", said[0])
        (task,) = runs.progress.tasks
    assert task.fields["figures"] == said[0]


def test_a_file_gets_the_progress_of_another_process_as_a_line(capsys):
    runs = Lines()
    runs.add("run", 5)
    runs.note("run", "writing: 4/10")
    assert capsys.readouterr().err == "run: writing: 4/10\n"


def test_the_time_left_of_a_resumed_run_is_that_of_its_own_updates(clock):
    resumed = Clock(100, done=60)
    assert resumed.left(60) == ""
    assert resumed.left(65) == "", "reports that came at one time"
    clock[0] += 20
    assert resumed.left(70) == "  0:01:00 left"


def test_the_bar_ends_with_the_last_evaluation(terminal):
    with runs_display() as runs:
        runs.add("run", 2)
        for update in (1, 2):
            runs.show("run", update, {**FIGURES, "beta": 0.5, "student_share": 0.25})
        runs.show("run", 2, {"bleu": 12.34})
        (task,) = runs.progress.tasks
    assert task.completed == 2
    assert task.fields["figures"].endswith(
        "beta 0.50 student 25%  lr 1.0e-03  1,234 tokens/s  BLEU 12.3"
    )


def test_the_score_that_weights_are_chosen_by_is_shown(capsys):
    with Lines() as runs:
        runs.add("run", 2)
        runs.show("run", 1, {"bleu": 1.0, "exact_match": 62.5})
        runs.show("run", 2, {"bleu": 2.0, "negative_reference_loss": -1.25})
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("exact 62.5  BLEU 1.0")
    assert second.endswith("reference loss 1.250  BLEU 2.0")


def test_the_total_of_all_runs_counts_finished_ones(terminal):
    with runs_display() as runs:
        runs.add("one", 4)
        runs.add("two", 6)
        runs.show_all()
        runs.show("one", 3, FIGURES)
        runs.finish("two", "was there before")
        total = next(task for task in runs.progress.tasks if task.description == "all")
    assert (total.completed, total.total) == (9, 10)


def test_updates_of_before_do_not_shorten_the_time_left_of_all_runs(terminal, clock):
    with runs_display() as runs:
        runs.progress.get_time = lambda: clock[0]
        for title in ("done", "stopped", "new"):
            runs.add(title, 100)
        runs.show_all()
        runs.finish("done", "was there before")
        for update in range(1, 11):
            clock[0] += 1
            runs.show("stopped", 50 + update, FIGURES)
            runs.show("new", update, FIGURES)
        total = next(task for task in runs.progress.tasks if task.description == "all")
    assert total.completed == 100 + 60 + 10
    assert total.time_remaining == pytest.approx((300 - 170) / 2, rel=0.1)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_commands_say_nothing(is_terminal, monkeypatch, capsys, clock):
    silent = Console(stderr=True, force_terminal=is_terminal, markup=False, emoji=False)
    monkeypatch.setattr(display, "console", silent)
    display.be_quiet()
    tell("a message")
    with runs_display() as runs:
        runs.add("run", 1)
        runs.show_all()
        runs.show("run", 1, FIGURES)
    with progress("writing", 2) as advance:
        clock[0] += 100
        advance()
    assert capsys.readouterr() == ("", "")
