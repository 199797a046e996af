"""Files that `evaluate` writes, and input that it refuses, through the real entry point."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import textgen_experiments.evaluation.evaluate
from textgen_agents.evaluation.exposure_report import ExposureBiasReport
from textgen_agents.evaluation.quality import Quality, score, translate
from textgen_env.generation.speculative import DRAFT_TOKENS
from textgen_env.models.acceleration.int8 import Int8Embedding
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode_sources
from textgen_experiments.cli import main
from textgen_experiments.evaluation import fastest_precision
from textgen_experiments.evaluation.evaluate import EvaluateOptions, result_rows
from textgen_experiments.evaluation.fastest_precision import ActingSpeeds
from textgen_experiments.evaluation.pareto import pareto_figure
from textgen_experiments.evaluation.results import EXPOSURE, RESULTS, SAMPLES, ResultRow
from textgen_experiments.evaluation.scores import EvaluatedModel, score_texts
from textgen_experiments.evaluation.timing import Speed
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.run_log import COMPARED

SIZES = ["--task.num-train", "40", "--task.num-validation", "8", "--task.num-test", "12"]
COPY = ["--task", "copy", "--task.num-words", "8", "--task.max-length", "4", *SIZES]
SMALL = ["--student.width", "16", "--learner.batch-size", "4", "--learner.evaluate-every", "2"]
TEST = copy_task(CopyConfig(8, max_length=4, num_train=40, num_validation=8, num_test=12)).test


def train(folder, *options):
    main(["train", *COPY, *SMALL, "--learner.updates", "4", *options, "--output", str(folder)])


def evaluate(*arguments):
    main(["evaluate", *map(str, arguments)])


def complaint(capsys, *arguments):
    """Return the last line that the command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    *_, line = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line.startswith("textgen: ")
    return line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder of runs not evaluated: a teacher, and two runs that learn from it."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "teacher", "--agent", "mle")
    teacher = ["--teacher", str(folder / "teacher" / "model")]
    for agent in ("mle", "word_kd"):
        train(folder / agent, "--agent", agent, *teacher)
    return folder


@pytest.fixture(scope="module")
def evaluated(runs):
    """Return the folders of the two runs with a teacher, evaluated together."""
    folders = runs / "mle", runs / "word_kd"
    evaluate(*folders, "--beam-size", "2", "--baseline", folders[0])
    return folders


@pytest.fixture
def copied(runs, tmp_path):
    """Return a function that copies a run by its name, to be damaged."""

    def copy(name):
        return shutil.copytree(runs / name, tmp_path / name)

    return copy


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def samples_of(folder):
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


def test_without_diagnostics_no_student_is_tried_as_a_draft(copied):
    folder = copied("mle")
    evaluate(folder, "--beam-size", "1", "--rounds", "1", "--no-diagnostics")
    _, row = read(folder / RESULTS)["rows"]
    assert row["acceptance"] is row["tokens_per_pass"] is None
    assert not (folder / EXPOSURE).exists()


def test_a_teacher_is_scored_and_timed_on_what_it_reads(tiny_task, make_table_model, monkeypatch):
    """The expert's view of a source may differ from the student's."""
    views = [pair.source for pair in reversed(tiny_task.test)]
    pairs = [
        pair._replace(expert_source=view) for pair, view in zip(tiny_task.test, views, strict=True)
    ]
    task, model = replace(tiny_task, test=pairs), make_table_model(tiny_task, 3)
    outcome = Outcome(0.0, 0, 0.0, 0, 0, 0)
    scored = [
        score_texts(EvaluatedModel("m", "a", "float32", None, model, task, result))
        for result in (None, outcome)
    ]
    teacher, student = (each.hypotheses for each in scored)
    assert teacher == translate(model, task, views)
    assert student == translate(model, task, [pair.source for pair in pairs]) != teacher
    timed = []
    monkeypatch.setattr(
        textgen_experiments.evaluation.evaluate,
        "decode_speeds",
        lambda models, **options: timed.extend(models) or [Speed(1.0, 1.0, 1.0)] * len(models),
    )
    result_rows(scored, None, EvaluateOptions(()))
    for model, read in zip(timed, (views, [pair.source for pair in pairs]), strict=True):
        assert torch.equal(model.source, encode_sources(read, task.tokenizer))


def test_each_run_has_its_row_beside_the_teachers(evaluated):
    for folder in evaluated:
        content = read(folder / RESULTS)
        teacher, row = content["rows"]
        assert content["task"]["test_pairs"] == len(TEST)
        assert (teacher["model"], row["model"]) == ("teacher", folder.name)
        hypotheses = [sample["hypothesis"] for sample in samples_of(folder)]
        quality = score(hypotheses, [pair.reference for pair in TEST])
        assert {name: row[name] for name in vars(quality)} == vars(quality)
        assert row["beam"]["size"] == 2
        assert set(row["beam"]) == {"size", *vars(quality)}
        assert row["speedup_vs_teacher"] > 0
        assert teacher["acceptance"] is teacher["tokens_per_pass"] is None
        assert 0 <= row["acceptance"] <= 1 <= row["tokens_per_pass"] <= 1 + DRAFT_TOKENS
    first, second = (read(folder / RESULTS)["rows"][1] for folder in evaluated)
    assert first["p_value"] is None
    assert 0 < second["p_value"] <= 1
    assert second["baseline"] == "mle"


def test_samples_are_the_test_pairs_in_order_with_all_that_was_written(evaluated):
    for folder in evaluated:
        samples = samples_of(folder)
        assert [(each["source"], each["reference"]) for each in samples] == [
            (pair.source, pair.reference) for pair in TEST
        ]
        by_teacher = [each["teacher"] for each in samples]
        teachers = score(by_teacher, [pair.reference for pair in TEST])
        assert read(folder / RESULTS)["rows"][0]["chrf"] == teachers.chrf


def test_exposure_has_every_diagnostic(evaluated):
    for folder in evaluated:
        found = read(folder / EXPOSURE)
        assert set(found) == set(ExposureBiasReport.__dataclass_fields__)
        assert set(found["positions"]) == {"reference", "student", "teacher"}
        assert found["positions"]["reference"]["count"][0] == len(TEST)
        assert None not in found.values()


def test_a_run_without_a_teacher_has_nulls_in_its_place(runs):
    evaluate(runs / "teacher", "--beam-size", "1")
    (row,) = read(runs / "teacher" / RESULTS)["rows"]
    assert row["beam"] is row["baseline"] is row["p_value"] is None
    assert {sample["teacher"] for sample in samples_of(runs / "teacher")} == {None}
    found = read(runs / "teacher" / EXPOSURE)
    assert found["positions"] is found["likelihood_risk"] is found["teacher_finishes"] is None
    assert found["length_ratio"] > 0


def test_a_table_has_a_line_for_each_model(runs, capsys):
    folders = runs / "mle", runs / "word_kd"
    evaluate(*folders, "--baseline", folders[0], "--beam-size", "2")
    shown = capsys.readouterr().out
    for part in ("teacher", "word_kd", "p against mle", "beam 2", "ROUGE-1 / 2 / L", "±"):
        assert part in shown


def test_beam_search_is_scored_beside_greedy_decoding(runs):
    evaluate(runs / "teacher")
    (row,) = read(runs / "teacher" / RESULTS)["rows"]
    assert row["beam"]["size"] == 5


def test_a_row_says_what_precision_it_is_of(copied, capsys):
    folders = copied("mle"), copied("word_kd")
    change(folders[0] / "config.json", precision="float32")
    change(folders[1] / "config.json", precision="bfloat16")
    evaluate(*folders)
    rows = [read(folder / RESULTS)["rows"] for folder in folders]
    assert [[row["precision"] for row in each] for each in rows] == [
        ["float32", "float32"],
        ["float32", "bfloat16"],
    ]
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in shown if " word_kd " in line] == ["bfloat16"]


def test_a_teacher_in_a_precision_of_its_own_is_shown_in_the_students_too(copied, capsys):
    folder = copied("mle")
    change(folder / "config.json", precision="float32")
    options = "--beam-size", "1", "--rounds", "1", "--no-diagnostics"
    evaluate(folder, *options, "--teacher-precision", "bfloat16")
    shown = capsys.readouterr().out.splitlines()
    precisions = [(line.split()[1], line.split()[-2]) for line in shown if line.startswith("│")]
    assert precisions == [("teacher", "bfloat16"), ("mle", "float32"), ("teacher,", "float32")]
    assert [row["model"] for row in read(folder / RESULTS)["rows"]] == ["teacher", "mle"]
    evaluate(folder, *options, "--teacher-precision", "float32")
    assert "teacher, float32" not in capsys.readouterr().out


def test_all_models_act_in_the_precision_that_is_asked_for(copied, monkeypatch):
    folder, entries = copied("mle"), []
    monkeypatch.setattr(
        textgen_experiments.evaluation.evaluate,
        "score_texts",
        lambda entry, **options: entries.append(entry) or score_texts(entry, **options),
    )
    evaluate(folder, "--precision", "int8", "--beam-size", "1", "--rounds", "1")
    assert [row["precision"] for row in read(folder / RESULTS)["rows"]] == ["int8", "int8"]
    kinds = [{type(module) for module in entry.model.modules()} for entry in entries]
    assert [Int8Embedding in each for each in kinds] == [True, True]


def test_models_act_in_their_fastest_precision_where_that_is_asked_for(
    copied, monkeypatch, tmp_path
):
    """Teacher and student are of one size, which is measured once."""
    folder = copied("mle")
    monkeypatch.setenv("TEXTGEN_CACHE", str(tmp_path / "cache"))
    answers = iter([ActingSpeeds(bfloat16=1.0, int8=2.0)])
    monkeypatch.setattr(fastest_precision, "measure_speeds", lambda *_: next(answers))
    evaluate(folder, "--precision", "fastest", "--beam-size", "1", "--rounds", "1")
    assert [row["precision"] for row in read(folder / RESULTS)["rows"]] == ["int8", "int8"]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    folders = [runs / "mle", Path(shutil.copytree(runs / "mle", tmp_path / "other" / "mle"))]
    evaluate(*folders, "--baseline", folders[1])
    rows = [read(folder / RESULTS)["rows"][1] for folder in folders]
    assert [row["model"] for row in rows] == [f"{runs.name}/mle", "other/mle"]
    assert [row["p_value"] for row in rows] == [1.0, None]
    assert rows[0]["baseline"] == "other/mle"


def test_the_same_run_twice_is_refused(runs, capsys):
    folder = runs / "mle"
    line = complaint(capsys, "evaluate", folder, folder / ".." / folder.name)
    assert "runs must be different folders" in line


def test_names_are_printed_as_they_are(runs, tmp_path, capsys):
    """Brackets are markup to rich's tables."""
    evaluate(shutil.copytree(runs / "teacher", tmp_path / "[red]"))
    assert "[red]" in capsys.readouterr().out


def change(path, **values):
    path.write_text(json.dumps(read(path) | values))


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    return events.Reload()


def test_tensorboard_shows_the_evaluation_as_it_stands_in_the_files(evaluated):
    folder = evaluated[1]
    events = events_of(folder)
    row, found = read(folder / RESULTS)["rows"][1], read(folder / EXPOSURE)
    for name in (*COMPARED, "bleu_confidence", "p_value", "tokenized_lowercase_bleu"):
        assert events.Scalars(f"test/{name}")[-1].value == pytest.approx(row[name], rel=1e-6)
    for name in ("length_ratio", "repetition_rate", "likelihood_risk", "coverage_risk"):
        assert events.Scalars(f"test/{name}")[-1].value == pytest.approx(found[name], rel=1e-6)
    assert events.Scalars("test/beam_bleu")[-1].value == pytest.approx(row["beam"]["bleu"])
    for each in found["teacher_finishes"]:
        figure = events.Scalars(f"test/teacher_finishes_{each['share']:g}")[-1].value
        assert figure == pytest.approx(each["bleu"], rel=1e-6)
    for who, positions in found["positions"].items():
        for measure in set(positions) - {"count"}:
            weighted = zip(positions[measure], positions["count"], strict=True)
            mean = sum(value * states for value, states in weighted) / sum(positions["count"])
            figure = events.Scalars(f"test/{who}_prefix_{measure}")[-1].value
            assert figure == pytest.approx(mean, rel=1e-6)
    assert events.Scalars("test/excess_accumulated_error")[-1].value in [
        pytest.approx(error, rel=1e-6) for error in found["excess_accumulated_error"]
    ]
    (picture,) = events.Images("pareto")
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    assert picture.width > 400
    first = samples_of(folder)[0]
    (text,) = events.Tensors("test_samples/0/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert all(f"{name}: {value}" in shown for name, value in first.items())


def test_an_evaluation_takes_the_place_of_the_one_before(runs, copied):
    folder = copied("teacher")
    for _ in range(2):
        evaluate(folder)
    assert len(events_of(folder).Scalars("test/bleu")) == 1
    assert len(events_of(folder).Scalars("validation/bleu")) == 2


def test_tensorboard_compares_runs_by_settings_and_final_figures(evaluated):
    folder = evaluated[1]
    plugin = events_of(folder).SummaryMetadata("_hparams_/experiment")
    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.plugin_data.content)
    metrics = {each.name.tag for each in data.experiment.metric_infos}
    assert {"final/validation_bleu", "test/bleu", "test/speedup_vs_teacher"} <= metrics
    plugin = events_of(folder).SummaryMetadata("_hparams_/session_start_info")
    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.plugin_data.content)
    settings = data.session_start_info.hparams
    assert settings["agent.type"].string_value == "WordKD"
    assert settings["learner.updates"].number_value == 4
    outcome = read(folder / "outcome.json")
    assert outcome.pop("metric") == "bleu"
    for name, value in outcome.items():
        (final,) = events_of(folder).Scalars(f"final/{name}")
        assert final.value == pytest.approx(value, rel=1e-6)
    assert metrics <= {*events_of(folder).Tags()["scalars"]}


def tags_of(folder):
    """Return the names of everything in a run's event files, as TensorBoard shows them."""
    kinds = events_of(folder).Tags()
    tags = {tag for kind in kinds.values() if isinstance(kind, list) for tag in kind}
    return {tag.removesuffix("/text_summary") for tag in tags}


def test_every_name_in_tensorboard_is_documented(evaluated):
    page = (Path(__file__).parents[3] / "docs" / "figures_logged.md").read_text(encoding="utf-8")
    names = [re.escape(name) for name in re.findall(r"`([^`]+)`", page)]
    patterns = [re.sub(r"<(number|share)>", r"[\\d.]+", name) for name in names]
    for folder in evaluated:
        tags = tags_of(folder)
        assert {"train/loss", "validation/coverage_risk", "test/beam_bleu", "pareto"} <= tags
        assert {"samples/0", "test_samples/0", "test/teacher_finishes_0.25"} <= tags
        for tag in tags:
            assert any(re.fullmatch(pattern, tag) for pattern in patterns), tag


def row(model, speed, bleu, confidence=1.0):
    quality = Quality(bleu, *[0.0] * 6, *[""] * 4)
    return ResultRow(
        model=model,
        agent="mle",
        precision="float32",
        seed=0,
        train_pairs=1,
        train_sources=0,
        parameters=1,
        quality=quality,
        bleu_confidence=confidence,
        baseline=None,
        p_value=None,
        beam_size=None,
        beam=None,
        tokens_per_second=speed,
        sentences_per_second=1.0,
        speedup_vs_teacher=1.0,
        train_seconds=1.0,
        teacher_tokens_queried=0,
    )


ROWS = [
    row("teacher", 10.0, 30.0),
    row("worse", 20.0, 20.0),
    row("same speed, worse", 50.0, 20.0),
    row("good", 50.0, 25.0),
    row("fast", 90.0, 10.0),
    row("same quality, slower", 80.0, 10.0),
]


def test_the_picture_has_a_point_with_its_interval_for_each_model():
    axes = pareto_figure([replace(each, bleu_confidence=2.0) for each in ROWS]).axes[0]
    assert [text.get_text() for text in axes.texts] == [each.model for each in ROWS]
    front = axes.lines[0].get_xydata().tolist()
    assert front == [[10.0, 30.0], [50.0, 25.0], [90.0, 10.0]]
    intervals = [bars.get_segments()[0][:, 1].tolist() for bars in axes.collections]
    assert intervals == [[each.quality.bleu - 2, each.quality.bleu + 2] for each in ROWS]
    assert axes.get_legend() is None, "a search for its place among many points takes seconds"


def test_names_in_the_picture_are_not_read_as_formulas():
    figure = pareto_figure([row("$x^2$", 10.0, 30.0), row(r"a$\frac$b", 20.0, 20.0)])
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)
    figure.savefig(io.BytesIO())


def test_a_baseline_that_is_none_of_the_runs_is_refused(runs, capsys):
    line = complaint(capsys, "evaluate", runs / "mle", "--baseline", runs / "word_kd")
    assert "--baseline must be one of the runs" in line


def test_an_empty_folder_is_no_run(tmp_path, capsys):
    assert "config.json" in complaint(capsys, "evaluate", tmp_path)


def test_a_run_still_being_written_is_named(copied, capsys):
    folder = copied("mle")
    (folder / "outcome.json").unlink()
    shutil.rmtree(folder / "model")
    line = complaint(capsys, "evaluate", folder)
    assert "run must be finished" in line
    assert str(folder) in line


@pytest.mark.parametrize("file", ["model/model.safetensors", "model/tokenizer.json"])
def test_a_model_cut_short_is_named(copied, capsys, file):
    folder = copied("mle")
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    line = complaint(capsys, "evaluate", folder)
    assert file in line


@pytest.mark.parametrize("file", ["config.json", "outcome.json"])
def test_a_description_cut_short_is_named(copied, capsys, file):
    folder = copied("mle")
    text = (folder / file).read_text()
    (folder / file).write_text(text[: len(text) // 2])
    assert file in complaint(capsys, "evaluate", folder)


def test_runs_of_different_tasks_have_no_table(runs, tmp_path, capsys):
    train(tmp_path / "other", "--agent", "mle", "--task.num-test", "11")
    line = complaint(capsys, "evaluate", runs / "teacher", tmp_path / "other")
    assert "must have the test pairs of" in line
    assert "other: it has --task.num-test 11 in place of" in line


def test_runs_of_different_teachers_have_no_table(runs, capsys):
    line = complaint(capsys, "evaluate", runs / "mle", runs / "teacher")
    assert "must have the same teacher" in line


def test_models_of_different_tokenizers_have_no_table(copied, capsys):
    """Otherwise the tokens of one would be read as words of the other."""
    one, other = copied("teacher"), copied("mle")
    config = (one / "config.json").read_text()
    (other / "config.json").write_text(config)
    path = other / "model" / "tokenizer.json"
    tokenizer = path.read_text().replace('"w0"', '"w1"', 1).replace('"w1"', '"w0"', 1)
    path.write_text(tokenizer.replace("w0", "other"))
    line = complaint(capsys, "evaluate", one, other)
    assert "must have the tokenizer of" in line


def test_a_run_whose_data_is_gone_is_named(tmp_path, capsys):
    files = {split: tmp_path / f"{split}.tsv" for split in ("train", "validation", "test")}
    for path in files.values():
        path.write_text("".join(f"word {n}\tanswer {n}\n" for n in range(20)))
    options = [item for split, path in files.items() for item in (f"--task.{split}", str(path))]
    folder = tmp_path / "run"
    updates = ["--learner.updates", "2", "--agent", "mle", "--output", str(folder)]
    main(["train", "--task", "text", *options, *SMALL, *updates])
    files["test"].unlink()
    assert str(files["test"]) in complaint(capsys, "evaluate", folder)
    assert not (folder / RESULTS).exists()


@pytest.mark.parametrize(
    "file", ["checkpoints/last.safetensors", "checkpoints/best.safetensors", "prepared.safetensors"]
)
def test_a_checkpoint_cut_short_is_found_and_named(copied, capsys, file):
    """Resuming a run reads its checkpoint."""
    folder = copied("mle")
    (folder / "outcome.json").unlink()
    whole = (folder / "checkpoints" / "last.safetensors").read_bytes()
    (folder / file).write_bytes(whole[:-10])
    teacher = load_teacher(folder)
    command = ["train", *COPY, *SMALL, "--learner.updates", "4", "--agent", "mle", *teacher]
    line = complaint(capsys, *command, "--output", folder)
    assert file in line
    assert "delete the run's folder" in line
    assert not (folder / "outcome.json").exists()


def load_teacher(folder):
    return ["--teacher", read(folder / "config.json")["experiment"]["teacher"]["path"]]
