"""Groups of runs that differ only in their seed, by hand and through the real entry point."""

import json
from dataclasses import replace

import pytest

from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_agents.training.learner import LearnerConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.cli import main
from textgen_experiments.evaluation.results import RESULTS
from textgen_experiments.evaluation.seed_groups import (
    SeededRun,
    group_cells,
    group_rows,
    groups_of,
    print_groups,
)
from textgen_experiments.runs.experiment import Experiment

REFERENCES = ["a b c d e", "b c d e f", "c d e f g"]
WRONG = ["a b c d x", "b c d e f", "c d x y z"]
BASE = Experiment(task=CopyConfig(), teacher=None, agent=MLE())


def run(name, seed, bleu, texts=REFERENCES, *, clip=1.0, chrf=50.0, **settings):
    learner = LearnerConfig(seed=seed, clip=clip)
    experiment = replace(BASE, learner=learner, train_draw=seed, **settings)
    figures = {"bleu": bleu, "chrf": chrf, "tokens_per_second": 100.0 + seed, "train_seconds": 9.0}
    return SeededRun(name, experiment, figures, texts)


def test_runs_are_grouped_by_all_but_their_seeds():
    runs = [
        run("a-1", 1, 1.0),
        run("b-0", 0, 1.0, clip=2.0),
        run("a-0", 0, 1.0),
        run("kept", 2, 1.0, keep_checkpoint=False),
        run("other", 0, 1.0, agent=SeqKD()),
    ]
    found = [[each.name for each in group] for group in groups_of(runs)]
    assert found == [["a-0", "a-1", "kept"], ["b-0"], ["other"]]


def test_a_row_has_means_and_the_settings_in_which_the_groups_differ():
    runs = [
        run("clip=1,seed=0", 0, 100.0),
        run("clip=1,seed=1", 1, 90.0, chrf=None),
        run("clip=2,seed=0", 0, 70.0, WRONG, clip=2.0),
    ]
    first, second = group_rows(runs, REFERENCES, baseline="clip=1,seed=1")
    assert (first.model, first.seeds, first.settings) == ("clip=1", [0, 1], {"learner.clip": "1"})
    assert first.runs == ["clip=1,seed=0", "clip=1,seed=1"]
    assert first.tokens_per_second == 100.5
    assert first.bleu_deviation == pytest.approx(50**0.5)
    assert first.chrf is None, "one of them lacks it"
    assert (first.baseline, first.p_value) == ("clip=1", None)
    assert (second.model, second.bleu_deviation) == ("clip=2,seed=0", None)
    assert second.bleu < first.bleu == pytest.approx(100.0), "by the texts"
    assert 0 < second.p_value <= 1
    assert group_cells(first)["BLEU"] == "100.0 ± 0.0"
    assert group_cells(first)["chrF"] == "-"


def test_options_of_unlike_agents_are_no_settings_in_which_groups_differ():
    runs = [run(f"mle-{seed}", seed, 1.0) for seed in range(2)]
    runs += [
        run(f"seqkd{clip:.0f}-0", 0, 1.0, agent=SeqKD(beam_size=3), clip=clip)
        for clip in (1.0, 2.0)
    ]
    rows = group_rows(runs, REFERENCES)
    assert [row.settings for row in rows] == [
        {"agent": "mle", "learner.clip": "1"},
        {"agent": "seqkd", "learner.clip": "1"},
        {"agent": "seqkd", "learner.clip": "2"},
    ]


def test_there_are_no_rows_where_no_two_differ_only_in_their_seed():
    assert group_rows([run("a", 0, 1.0), run("b", 0, 1.0, clip=2.0)], REFERENCES) == []


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (("mle-0", "mle-1"), "mle"),
        (("distillm2_seed_10", "distillm2_seed_11"), "distillm2"),
        (("clip=1,seed=0", "clip=1,seed=12"), "clip=1"),
        (("seed=0", "seed=1"), "mle"),
        (("one", "two"), "mle"),
        (("0/mle", "1/mle"), "mle"),
    ],
)
def test_a_group_has_the_name_of_its_runs_without_their_seeds(names, group):
    runs = [run(name, seed, 1.0) for seed, name in enumerate(names)]
    assert [row.model for row in group_rows(runs, REFERENCES)] == [group]


def test_groups_that_would_have_one_name_have_those_of_their_first_runs():
    runs = [run(f"mle-{seed}", seed, 1.0, clip=1.0 + seed // 2) for seed in range(4)]
    assert [row.model for row in group_rows(runs, REFERENCES)] == ["mle-0", "mle-2"]


def test_the_table_names_the_baselines_group(capsys):
    runs = [run(f"mle-{seed}", seed, 1.0) for seed in range(2)] + [run("other", 0, 1.0, clip=2.0)]
    print_groups(group_rows(runs, REFERENCES, baseline="mle-1"))
    printed = capsys.readouterr().out
    assert "p against mle" in printed
    assert "learner.clip" in printed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of two groups of two seeds, evaluated together."""
    root = tmp_path_factory.mktemp("runs")
    sizes = ["--task.num-train", "40", "--task.num-validation", "8", "--task.num-test", "12"]
    small = ["--learner.updates", "2", "--learner.batch-size", "4", "--student.width", "16"]
    found = []
    for clip in "12":
        for seed in "01":
            found.append(str(root / f"clip={clip},seed={seed}"))
            own = ["--learner.clip", clip, "--learner.seed", seed, "--output", found[-1]]
            main(["train", "--task", "copy", "--agent", "mle", *sizes, *small, *own])
    fast = ["--no-diagnostics", "--beam-size", "1", "--rounds", "1"]
    main(["evaluate", *found, *fast, "--baseline", found[0]])
    return found


def test_results_gain_the_groups_and_the_report_shows_them(folders, tmp_path):
    for folder in folders:
        with open(f"{folder}/{RESULTS}", encoding="utf-8") as file:
            groups = json.load(file)["groups"]
        assert [each["model"] for each in groups] == ["clip=1", "clip=2"]
        assert [each["settings"] for each in groups] == [
            {"learner.clip": "1"},
            {"learner.clip": "2"},
        ]
        assert groups[1]["baseline"] == "clip=1"
    page = tmp_path / "report.html"
    main(["report", *folders, "-o", str(page), "--sentences", "2"])
    table = page.read_text(encoding="utf-8").split("Runs that differ only in their seed")[1]
    assert "<span>clip=1</span>" in table.split("</table>")[0]
    assert "learner.clip" in table.split("</table>")[0]
    main(["report", folders[0], folders[2], "-o", str(page), "--sentences", "2"])
    assert "Runs that differ only in their seed" not in page.read_text(encoding="utf-8")


def test_results_of_single_seeds_have_no_groups(folders):
    fast = ["--no-diagnostics", "--beam-size", "1", "--rounds", "1"]
    main(["evaluate", folders[0], folders[2], *fast])
    with open(f"{folders[0]}/{RESULTS}", encoding="utf-8") as file:
        assert set(json.load(file)) == {"machine", "task", "rows", "weights"}


def test_the_command_settings_prints_those_that_differ(folders, capsys):
    capsys.readouterr()
    main(["settings", folders[0], folders[2]])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line.strip("│").split("│")] for line in lines] == [
        ["learner.clip", "1", "2"]
    ]
    main(["settings", folders[0]])
    assert "learner.batch-size" in capsys.readouterr().out
