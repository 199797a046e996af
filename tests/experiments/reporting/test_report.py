"""The report of trained runs, and its errors for broken ones."""

import json
import re
import shutil
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import plotly.graph_objects as go
import pytest

from tests.support.report_runs import HOSTILE, NUM_TEST, trained_runs
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.tasks.task import DataError
from textgen_experiments.cli import main
from textgen_experiments.evaluation.pareto import Point, pareto_front
from textgen_experiments.reporting import token_view
from textgen_experiments.reporting.charts import line_chart, looks_of, trade_off_chart
from textgen_experiments.reporting.load_runs import read_reported_runs
from textgen_experiments.reporting.page import notes
from textgen_experiments.reporting.report import ReportOptions, report
from textgen_experiments.reporting.token_view import tasks_of
from textgen_experiments.runs.folder import RunError, read_config, write_config


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Return the folders of two runs, which tests must not change."""
    return trained_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(evaluated, tmp_path):
    """Return copies of the two folders, to be damaged."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in evaluated]


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    output = tmp_path_factory.mktemp("page") / "report.html"
    main(["report", *map(str, evaluated), "-o", str(output), "--sentences", "6"])
    return output.read_text(encoding="utf-8")


def read_sentences(folders, count):
    """Return sentences of the runs in these folders."""
    runs = read_reported_runs(folders)
    return token_view.read_sentences(runs, tasks_of(runs), count)


def data_of(page):
    """Return the data of the page's program."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def written(runs, output):
    report(ReportOptions(tuple(runs), output, sentences=3))
    return output.read_text(encoding="utf-8")


def lines_of(path):
    """Return the lines with their ends; texts in them may hold other line ends."""
    return [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def rewrite(path, change):
    """Apply `change` to the JSON in `path`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def cut(path):
    """Keep the first half of a file, which ends in the middle of a line."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2].rstrip("\n"), encoding="utf-8")


def row_of(page, name):
    """Return the cells of a model's row in the first table."""
    table = page[page.index("<table") : page.index("</table>")]
    (row,) = [
        row
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        if f'data-value="{name}"' in row
    ]
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_the_figures_of_the_runs_are_in_the_table(page, evaluated):
    for folder in evaluated:
        rows = json.loads((folder / "results.json").read_text())["rows"]
        for row in rows:
            assert row_of(page, row["model"])[0] == f"{row['bleu']:.1f}"
            assert f"{row['tokens_per_second']:,.0f}" in row_of(page, row["model"])


def test_the_page_asks_for_nothing(page):
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"\bsrc=|@import|url\(", markup)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', markup))


def test_texts_cannot_break_out_of_the_page(page):
    assert page.count("<script") == page.count("</script>") == 3 + page.count("plotly_dummy")
    shown = " ".join(sentence["source"] for sentence in data_of(page)["sentences"])
    assert sum(phrase in shown for phrase in HOSTILE) >= 2


def test_the_same_runs_give_the_same_page(page, evaluated, tmp_path):
    output = tmp_path / "again.html"
    report(ReportOptions(tuple(evaluated), output, sentences=6))
    assert output.read_text(encoding="utf-8") == page


def test_every_chart_is_a_figure_of_plotly(page):
    charts = data_of(page)["charts"]
    assert len(charts) >= 15
    for chart in charts:
        go.Figure(
            data=chart["traces"], layout=chart["layout"]
        )  # raises for values unknown to plotly


@pytest.mark.parametrize("writer", ["student", "reference"])
def test_agreement_over_training_is_drawn_for_every_run(page, writer):
    """The charts read the figures under the names that runs log."""
    charts = {chart["name"]: chart for chart in data_of(page)["charts"]}
    traces = charts[f"learning-{writer}_prefix_agreement"]["traces"]
    assert [trace["name"] for trace in traces] == ["mle", "imitkd_full"]
    assert all(len(trace["y"]) == 3 for trace in traces)


def test_the_pages_path_is_printed_in_one_piece_as_it_is(evaluated, tmp_path, capsys):
    output = tmp_path / "[red]" / ("long " * 20) / "report.html"
    written(evaluated, output)
    assert f"written to {output}\n" in capsys.readouterr().err


def test_sentences_are_chosen_by_their_text(evaluated):
    samples = read_reported_runs(evaluated)[0].samples
    few, more = token_view.choose_samples(samples, 5), token_view.choose_samples(samples, 9)
    assert few == sorted(few)
    assert set(few) < set(more)
    assert [samples[::-1][i] for i in token_view.choose_samples(samples[::-1], 5)] == [
        samples[i] for i in few
    ][::-1]
    assert token_view.choose_samples(samples, 1000) == list(range(NUM_TEST))


def test_tokens_make_the_texts_that_were_evaluated(evaluated):
    runs = read_reported_runs(evaluated)
    for sentence in read_sentences(evaluated, 1000):
        for run in runs:
            assert sentence.texts[run.name] == run.samples[sentence.number - 1].hypothesis
            whole = sentence.texts[run.name].rstrip("\N{REPLACEMENT CHARACTER}").strip()
            assert token_view.text_of(sentence.tokens[run.name]) == whole


def test_a_run_is_not_taken_for_the_teacher(runs, tmp_path):
    run = runs[0].rename(tmp_path / "teacher")
    page = written([run], tmp_path / "page.html")
    own, teachers = (row_of(page, name) for name in (f"{tmp_path.name}/teacher", "teacher"))
    teacher, row = json.loads((run / "results.json").read_text())["rows"]
    for cells, figures in ((own, row), (teachers, teacher)):
        assert f"{figures['tokens_per_second']:,.0f}" in cells


def test_a_task_whose_data_is_gone_is_named(runs):
    def move(config):
        config["experiment"]["task"]["test"]["path"] = "nowhere.tsv"

    for folder in runs:
        rewrite(folder / "config.json", move)
    with pytest.raises(DataError, match=r"nowhere\.tsv"):
        read_sentences(runs, 3)


def test_names_are_as_long_as_they_must_be(evaluated, tmp_path):
    other = shutil.copytree(evaluated[0], tmp_path / "other" / evaluated[0].name)
    names = [run.name for run in read_reported_runs([evaluated[0], other])]
    assert names == [f"{folder.parent.name}/mle" for folder in (evaluated[0], other)]
    with pytest.raises(RunError, match="runs must be different folders"):
        read_reported_runs([other, other.parent / "." / other.name])


@pytest.mark.parametrize("missing", [("results.json",), ("results.json", "samples.jsonl")])
def test_a_run_that_was_not_evaluated_is_told_how(runs, missing):
    for name in missing:
        (runs[1] / name).unlink()
    with pytest.raises(RunError, match=f"{' and '.join(missing)}.*run `textgen evaluate .*` first"):
        read_reported_runs(runs)


@pytest.mark.parametrize(
    "name", ["results.json", "samples.jsonl", "exposure.json", "metrics.jsonl"]
)
def test_a_file_that_was_cut_short_is_named(runs, name):
    cut(runs[0] / name)
    with pytest.raises(RunError, match=name):
        read_reported_runs(runs)


def test_samples_that_are_too_few_are_refused(runs):
    path = runs[0] / "samples.jsonl"
    path.write_text("".join(lines_of(path)[:-1]), encoding="utf-8")
    with pytest.raises(
        RunError, match=f"of one evaluation: .*, got 2 rows and {NUM_TEST - 1} samples"
    ):
        read_reported_runs(runs)


@pytest.mark.parametrize("rows", [[], None, "none", [{}, {}, {}], [{}], [1], [None, None]])
def test_results_without_rows_are_refused(runs, rows):
    rewrite(runs[0] / "results.json", lambda content: content.update(rows=rows))
    with pytest.raises(
        RunError, match=r"must hold the results\.json and samples\.jsonl of one evaluation"
    ):
        read_reported_runs(runs)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("figure", "value", "rule"),
    [
        ("speedup_vs_teacher", None, "above 0"),
        ("speedup_vs_teacher", 0.0, "above 0"),
        ("tokens_per_second", -1, "above 0"),
        ("bleu", "12", "a number, got '12'"),
        ("bleu", True, "a number"),
        ("bleu", float("nan"), "a number, got None"),
        ("chrf", "12", "a number or null"),
        ("chrf", [12], "a number or null"),
        ("signature", None, "a text"),
        ("baseline", 1, "a text or null"),
        ("beam", {"size": "5"}, "a size and a bleu"),
    ],
)
def test_a_row_that_cannot_be_shown_is_named(runs, place, figure, value, rule):
    rewrite(
        runs[0] / "results.json", lambda content: content["rows"][place].update({figure: value})
    )
    with pytest.raises(RunError, match=rf"results\.json.*{figure} must be .*{rule}.*again"):
        read_reported_runs(runs)


def test_infinite_figures_are_refused_where_python_reads_them(runs):
    path = runs[0] / "results.json"
    path.write_text(re.sub(r'"bleu": [^,]*,', '"bleu": 1e999,', path.read_text()))
    with pytest.raises(RunError, match="bleu must be a number, got inf"):
        read_reported_runs(runs)


def test_results_of_an_unnamed_task_are_refused(runs):
    rewrite(runs[0] / "results.json", lambda content: content["task"].pop("name"))
    with pytest.raises(RunError, match=r"results\.json.*name must be a text"):
        read_reported_runs(runs)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("samples.jsonl", '{"source": "a", "reference": "b", "teacher": "c", "hypothesis": null}'),
        ("samples.jsonl", '{"source": "a", "reference": "b", "teacher": 1, "hypothesis": "d"}'),
        ("samples.jsonl", "[]"),
        ("metrics.jsonl", "1"),
        ("metrics.jsonl", "null"),
        ("metrics.jsonl", '{"loss": 1.0}'),
        ("metrics.jsonl", '{"update": 1, "loss": "1.0"}'),
        ("metrics.jsonl", '{"update": 1, "loss": 1e999}'),
        ("metrics.jsonl", "{\xff"),
        ("samples.jsonl", "{\xff"),
    ],
)
def test_a_line_that_is_none_of_a_run_is_named(runs, file, line):
    path = runs[0] / file
    first, *others = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, line.encode("latin-1"), *others[1:]]))
    with pytest.raises(RunError, match=file.replace(".", r"\.")):
        read_reported_runs(runs)


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("likelihood_risk", "low"),
        ("excess_accumulated_error", 3.0),
        ("excess_accumulated_error", ["high"]),
        ("teacher_finishes", [{"share": None, "bleu": 1.0}]),
        ("positions", {"student": {"agreement": [1.0], "divergence": [], "count": [3]}}),
        ("positions", {"student": {"agreement": [1.0]}}),
        ("positions", [1]),
    ],
)
def test_diagnostics_that_cannot_be_shown_are_named(runs, figure, value):
    rewrite(runs[0] / "exposure.json", lambda content: content.update({figure: value}))
    with pytest.raises(RunError, match=rf"exposure\.json must be whole: {figure} must be"):
        read_reported_runs(runs)


@pytest.mark.parametrize(
    "change", [{"experiment": "abc"}, {"precision": "float16"}], ids=["experiment", "precision"]
)
def test_a_configuration_that_is_none_is_one_line_of_both_commands(runs, capsys, change):
    rewrite(runs[0] / "config.json", lambda content: content.update(change))
    for command in ("evaluate", "report"):
        with pytest.raises(SystemExit) as stop:
            main([command, str(runs[0])])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "config.json must be a run's configuration" in error


@pytest.mark.parametrize("kept", [1, 3, -2, -1])
def test_learning_curves_that_end_early_are_marked(runs, tmp_path, kept):
    """A file that ends with a whole line may still be too short."""
    assert "end early" not in written(runs, tmp_path / "page.html")
    path = runs[0] / "metrics.jsonl"
    path.write_text("".join(lines_of(path)[:kept]))
    page = written(runs, tmp_path / "page.html")
    assert re.search(r"mle has learning curves that end early \(update \d+ of 12\)", page)


def test_several_precisions_are_marked(runs, tmp_path):
    assert "several precisions" not in written(runs, tmp_path / "page.html")
    rewrite(
        runs[1] / "results.json",
        lambda content: content["rows"][1].update(precision="bfloat16"),
    )
    page = written(runs, tmp_path / "page.html")
    assert "(teacher float32, mle float32, imitkd_full bfloat16)" in page
    for folder in runs:  # of an evaluation by an older version
        rewrite(
            folder / "results.json",
            lambda content: [row.pop("precision") for row in content["rows"]],
        )
    assert "several precisions" not in written(runs, tmp_path / "page.html")


def test_names_in_charts_are_not_read_as_tags():
    name = "<b>a</b> & b"
    line = line_chart("c", "t", {name: ([1], [1.0])}, x={}, y={})
    front = trade_off_chart("c", "t", None, {name: Point(1.0, 1.0)}, x={}, y={})
    shown = [line.traces[0]["name"], front.traces[1]["name"]]
    assert shown == ["&lt;b&gt;a&lt;/b&gt; &amp; b"] * 2
    assert line.traces[0]["legendgroup"] == name  # by which the page's program finds it


def test_what_was_not_measured_is_a_gap(runs, tmp_path):
    (runs[0] / "exposure.json").unlink()
    (runs[1] / "metrics.jsonl").unlink()
    page = written(runs, tmp_path / "page.html")
    assert "mle has no figures of exposure bias" in page
    assert "imitkd_full has no learning curves" in page
    assert "no figures for mle" in page
    charts = {chart["name"]: chart for chart in data_of(page)["charts"]}
    for name, known in (("teacher-finishes", "imitkd_full"), ("learning-loss", "mle")):
        assert [trace["name"] for trace in charts[name]["traces"]] == [known]


def test_what_several_runs_lack_is_one_note_with_one_command(runs):
    for folder in runs:
        (folder / "exposure.json").unlink()
    assert notes(read_reported_runs(runs)) == [
        "mle, imitkd_full have no figures of exposure bias: "
        f"run `textgen evaluate {runs[0]} {runs[1]}`."
    ]


def test_an_undefined_figure_is_a_gap(runs, tmp_path):
    path = runs[0] / "exposure.json"

    def spoil(content):
        content["likelihood_risk"] = float("nan")
        content["excess_accumulated_error"][1] = float("inf")
        content["positions"]["student"]["agreement"][0] = float("nan")

    rewrite(path, spoil)
    page = written(runs, tmp_path / "page.html")
    charts = {chart["name"]: chart for chart in data_of(page)["charts"]}
    assert charts["accumulated-error"]["traces"][0]["y"][1] is None
    assert charts["agreement-student"]["traces"][0]["y"][0] is None


def test_an_evaluation_without_the_later_measures_has_gaps(runs, tmp_path):
    """As one of an earlier version, which had agreement and divergence alone."""
    whole = written(runs, tmp_path / "page.html")
    assert "entropy gap, own" in whole

    def without(content):
        for curves in content["positions"].values():
            for name in ("top_k_overlap", "shared_mass", "entropy_gap"):
                del curves[name]

    for folder in runs:
        rewrite(folder / "exposure.json", without)
    page = written(runs, tmp_path / "page.html")
    assert "entropy gap, own" not in page
    assert "agreement, own" in page


def test_the_page_says_what_the_runs_differ_in_and_where_they_come_from(runs, tmp_path):
    rewrite(runs[0] / "config.json", lambda content: content.update(commit="c0ffee" * 6))
    rewrite(runs[1] / "config.json", lambda content: content.pop("command", None))
    rewrite(
        runs[0] / "config.json", lambda content: content.update(command="textgen <train> 'a b'")
    )
    page = written(runs, tmp_path / "page.html")
    settings = page[page.index('<section id="settings">') :]
    headings = re.findall(r'<button type="button">([^<]*)</button></th>', settings)
    assert headings[:2] == ["model", "agent"]
    assert headings[-1] == "commit"
    assert "learner.batch-size" not in headings  # the same in both
    assert "c0ffeec0ff" in settings
    commands = re.findall(r"<dt>(.*?)</dt><dd><code>(.*?)</code>", settings)
    assert commands == [("mle", "textgen &lt;train&gt; &#39;a b&#39;")]


@pytest.mark.parametrize("value", [1, ["textgen"]])
def test_a_command_that_is_no_text_is_named(runs, value):
    rewrite(runs[0] / "config.json", lambda content: content.update(command=value))
    with pytest.raises(
        RunError, match=r"config\.json must be whole: command must be a text or null"
    ):
        read_reported_runs(runs)


def test_the_models_are_compared_and_their_words_counted(page, evaluated):
    data = data_of(page)
    assert data["comparison"]["systems"] == ["teacher", "mle", "imitkd_full"]
    assert data["comparison"]["pairs"] == NUM_TEST
    charts = {chart["name"]: chart for chart in data["charts"]}
    for name in ("length-source", "length-reference", "frequency-pairs", "frequency-words"):
        shown = [trace["name"] for trace in charts[name]["traces"]]
        assert shown == ["teacher", "mle", "imitkd_full"]
    assert (
        '<th scope="col" aria-sort="none" title="share of the numbers that the text keeps">' in page
    )


OLDER = {
    "config.json": {"reference_weight": "gold_weight", "batches_per_rollout": "pool"},
    "metrics.jsonl": {
        "reference_loss": "gold_loss",
        "reference_prefix_agreement": "gold_agreement",
        "reference_prefix_divergence": "gold_divergence",
        "student_prefix_agreement": "own_agreement",
        "student_prefix_divergence": "own_divergence",
        "teacher_prefix_agreement": "teacher_agreement",
        "teacher_prefix_divergence": "teacher_divergence",
    },
    "exposure.json": {"reference": "gold", "student": "own"},
}
"""Names of today and of earlier versions, by file."""


def test_runs_with_the_names_of_an_earlier_version_give_the_same_page(runs, tmp_path):
    before = written(runs, tmp_path / "page.html")
    for folder, (name, older) in product(runs, OLDER.items()):
        text = (folder / name).read_text(encoding="utf-8")
        for new, old in older.items():
            assert f'"{new}": ' in text or folder.name == "mle"
            text = text.replace(f'"{new}": ', f'"{old}": ')
        (folder / name).write_text(text, encoding="utf-8")
    assert written(runs, tmp_path / "page.html") == before
    main(["evaluate", *map(str, runs), "--beam-size", "1"])
    assert '"student": ' in (runs[0] / "exposure.json").read_text(encoding="utf-8")


def test_a_run_in_training_has_curves_and_no_test_figures(runs, tmp_path):
    (runs[0] / "outcome.json").unlink()
    cut(runs[0] / "metrics.jsonl")
    page = written(runs, tmp_path / "page.html")
    assert re.search(r"mle is still being trained \(update \d of 12\)", page)
    assert set(row_of(page, "mle")) == {"\N{EN DASH}"}
    data = data_of(page)
    charts = {chart["name"]: chart for chart in data["charts"]}
    assert [trace["name"] for trace in charts["learning-loss"]["traces"]] == ["mle", "imitkd_full"]
    assert data["readable"] == ["imitkd_full"]


def test_runs_in_training_alone_make_a_page(runs, tmp_path):
    for folder in runs:
        (folder / "outcome.json").unlink()
    assert "No run has been trained to its end yet" in written(runs, tmp_path / "page.html")


def test_runs_of_different_teachers_are_refused(runs):
    def other_teacher(config):
        config["experiment"]["teacher"]["path"] = "elsewhere"

    rewrite(runs[1] / "config.json", other_teacher)
    with pytest.raises(RunError, match=r"must have the same teacher as .*mle, got .*imitkd_full"):
        read_reported_runs(runs)


def test_runs_of_different_teachers_on_servers_are_refused(runs):
    for folder, model in zip(runs, ("big", "small"), strict=False):
        run = read_config(folder)
        server = RemoteTeacher("http://one/v1", model, Path("tokenizer"))
        changed = replace(run.experiment, teacher=None, server=server)
        write_config(folder, replace(run, experiment=changed), {})
    with pytest.raises(RunError, match=r"must have the same server as .*mle, got .*imitkd_full"):
        read_reported_runs(runs)


def test_runs_beside_different_texts_are_refused(runs):
    path = runs[1] / "samples.jsonl"
    first, *others = lines_of(path)
    changed = json.dumps(json.loads(first) | {"teacher": "something else"}) + "\n"
    path.write_text("".join([changed, *others]), encoding="utf-8")
    with pytest.raises(RunError, match="run one `textgen evaluate` on both"):
        read_reported_runs(runs)


def test_speeds_of_several_processes_are_not_compared_in_silence(runs, tmp_path):
    assert "compare speed-ups" not in written(runs, tmp_path / "page.html")
    rewrite(
        runs[1] / "results.json",
        lambda content: content["rows"][0].update(tokens_per_second=1.0),
    )
    assert "measured in several processes" in written(runs, tmp_path / "page.html")
    rewrite(runs[1] / "results.json", lambda content: content["machine"].update(cores=99))
    assert "measured on several machines" in written(runs, tmp_path / "page.html")


def test_another_model_than_the_evaluated_one_is_refused(runs):
    shutil.rmtree(runs[1] / "model")
    shutil.copytree(runs[0] / "model", runs[1] / "model")
    with pytest.raises(RunError, match=r"must be evaluated after it was trained, got a results"):
        read_reported_runs(runs)
    rewrite(runs[1] / "results.json", lambda content: content.pop("weights"))  # an older file
    with pytest.raises(RunError, match="must be the one that was evaluated"):
        read_sentences(runs, 20)


def test_other_pairs_than_the_evaluated_ones_are_refused(runs):
    for folder in runs:
        path = folder / "samples.jsonl"
        path.write_text("".join(reversed(lines_of(path))), encoding="utf-8")
    with pytest.raises(RunError, match="must be those that it was evaluated on"):
        read_sentences(runs, 20)


def test_bad_input_is_one_line_of_the_command(runs, capsys, tmp_path):
    cut(runs[0] / "results.json")
    for arguments in (
        [*map(str, runs)],
        [str(tmp_path / "nowhere")],
        [str(runs[1]), "--sentences", "0"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["report", *arguments])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_front_has_the_points_that_no_other_beats():
    points = {str(i): Point((7 * i) % 11, (5 * i * i) % 13) for i in range(12)}

    def beaten(name):
        own = points[name]
        return any(
            other[:2] != own[:2] and other.speed >= own.speed and other.quality >= own.quality
            for other in points.values()
        )

    front = pareto_front(points)
    assert {points[name] for name in front} == {points[name] for name in points if not beaten(name)}
    assert [points[name].speed for name in front] == sorted(points[name].speed for name in front)
    assert pareto_front({"a": Point(1, 1), "b": Point(1, 1)}) == ["a"]
    assert pareto_front({}) == []


def test_no_two_models_look_alike():
    models = looks_of(map(str, range(56)), teacher=True)
    looks = [(look.color, look.marker) for look in models.values()]
    assert len(looks) == 57
    assert all(one != other for one, other in combinations(looks, 2))
