import io
import json
import sys

import pytest
import torch
from rich.console import Console

import textgen_experiments.runs.setup
from textgen_agents import AGENTS
from textgen_env.models.storage import load_model
from textgen_experiments import cli
from textgen_experiments.cli import main
from textgen_experiments.command_line.commands import Command
from textgen_experiments.runs import progress
from textgen_experiments.runs.interrupts import Interrupts
from textgen_experiments.runs.outcome import read_outcome

COPY = ["--task", "copy", "--task.num-words", "8", "--task.max-length", "4"]
SMALL = ["--student.width", "16", "--learner.batch-size", "4", "--learner.evaluate-every", "2"]
SIZES = ["--task.num-train", "40", "--task.num-validation", "8", "--task.num-test", "8"]


def train(folder, *options, updates=3):
    arguments = [*COPY, *SIZES, *SMALL, "--learner.updates", str(updates), *options]
    main(["train", *arguments, "--output", str(folder)])


def complaint(capsys, *arguments, code=2):
    """Return the one line that the command prints before it ends with `code`."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    output = capsys.readouterr()
    assert stop.value.code == code
    assert output.err.startswith("textgen: ")
    assert output.err.count("\n") == 1
    return output.err


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train(folder, "--agent", "mle")
    return folder


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_trains_from_the_command_line(agent, teacher_run, tmp_path):
    own = {
        "seqkd": ["--agent.beam-size", "2"],
        "skd": ["--agent.k", "3"],
        "genpi": ["--agent.prompt-weight", "0"],  # for a teacher that reads no prompt
        "imitkd": ["--agent.beta.base", "1e9", "--agent.batches-per-rollout", "1"],
    }.get(agent, [])
    if AGENTS[agent].needs_mixture:
        own = ["--further-teachers", str(teacher_run / "model")]
    train(tmp_path / "run", "--agent", agent, "--teacher", str(teacher_run / "model"), *own)
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert (outcome["teacher_tokens_queried"] > 0) == AGENTS[agent]().needs_expert
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_transformer_student_trains_from_the_command_line(tmp_path):
    train(tmp_path / "run", "--agent", "mle", "--student", "transformer")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architecture"] == "transformer"


def test_a_recurrent_student_learns_to_attend_from_the_command_line(tmp_path):
    sizes = ["--student.num-heads", "2", "--student.feed-forward", "32"]
    unit = ["--student", "hybrid", "--student.unit", "sru_pp"]
    train(tmp_path, "--agent", "mle", *unit, *sizes)
    student = load_model(tmp_path / "model")
    assert student.config.unit == "sru_pp"
    for layer in student.decoder:
        assert layer.unit.attention_scale != 0, "it begins at 0"


def test_a_student_starts_from_the_weights_and_size_of_a_model(teacher_run, tmp_path):
    start, still = str(teacher_run / "model"), ("--learner.learning-rate", "0")
    train(tmp_path, "--agent", "mle", "--student-init", start, "--student.width", "32", *still)
    before, after = load_model(teacher_run / "model"), load_model(tmp_path / "model")
    for name, weight in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], weight)


def test_a_student_starts_from_no_model_with_another_tokenizer(teacher_run, tmp_path, capsys):
    other, start = tmp_path / "other", str(teacher_run / "model")
    train(other, "--agent", "mle", "--task.num-words", "9")
    capsys.readouterr()
    models = ["--teacher", str(other / "model"), "--student-init", start]
    line = complaint(capsys, "train", *COPY, *SIZES, *models, "--output", str(tmp_path / "run"))
    assert "--student-init must have the teacher's tokenizer" in line
    assert not (tmp_path / "run").exists()


def test_a_student_is_held_to_the_data_and_to_where_it_started(teacher_run, tmp_path, monkeypatch):
    loaded, load = [], textgen_experiments.runs.setup.load_model
    monkeypatch.setattr(
        textgen_experiments.runs.setup,
        "load_model",
        lambda folder, **options: loaded.append(folder) or load(folder, **options),
    )
    start = teacher_run / "model"
    train(
        tmp_path,
        *("--agent", "mle", "--student-init", str(start), "--agent.label-smoothing", "0.1"),
        *("--learner.reference-weight", "0.5", "--learner.ewc-weight", "2"),
    )
    assert loaded == [start]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    updates = [record for record in records if "loss" in record]
    assert all(record["reference_term"] > 0 for record in updates)
    assert [record["ewc_term"] > 0 for record in updates] == [False, True, True]
    assert all(record["reference_loss"] > 0 for record in records if "bleu" in record)


def test_where_it_started_must_be_given(teacher_run, tmp_path, capsys):
    options = [*COPY, *SIZES, *SMALL, "--agent", "mle", "--learner.ewc-weight", "2"]
    line = complaint(capsys, "train", *options, "--output", str(tmp_path / "run"))
    assert "--student-init must be given where --learner.ewc-weight is not 0" in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_not_asked_for_more_tokens_than_it_has(teacher_run, tmp_path, capsys):
    options = ["--agent", "skd", "--teacher", str(teacher_run / "model")]
    with pytest.raises(SystemExit):
        train(tmp_path, *options)
    line = "textgen: --agent.k must be at most 11, the size of the teacher's vocabulary, got 25"
    assert capsys.readouterr().err.endswith(f"{line}: lower it\n")
    assert not (tmp_path / "prepared.safetensors").exists()
    train(tmp_path, *options, "--agent.k", "3")  # its folder is free
    assert read_outcome(tmp_path).best_update > 0


@pytest.mark.parametrize(
    ("name", "goes_on"),
    [("train", True), ("study", True), ("recovery", False), ("evaluate", False)],
)
def test_the_message_on_a_stop_says_whether_the_command_resumes(capfd, monkeypatch, name, goes_on):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "INTERRUPTS", Interrupts())
    monkeypatch.setattr(cli, "parse", lambda words: None)
    monkeypatch.setattr(Command, "load_function", lambda self: stop)
    line = complaint(capfd, name, code=130)
    assert line.startswith("textgen: stopped")
    assert ("the same command goes on from the last checkpoint" in line) == goes_on


def test_evaluate_prints_a_table_and_writes_results(teacher_run, capsys):
    main(["evaluate", str(teacher_run)])
    assert "BLEU" in capsys.readouterr().out
    results = json.loads((teacher_run / "results.json").read_text())
    (row,) = results["rows"]
    assert row["agent"] == "mle"
    assert row["tokens_per_second"] > 0
    assert row["speedup_vs_teacher"] == 1.0
    assert "tok:13a" in row["signature"]


@pytest.mark.parametrize("beam_size", ["1", "2"])
def test_generate_answers_each_line_with_a_line(teacher_run, beam_size, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w1 w2 w3\n\nw4 w0")))
    main(["generate", str(teacher_run), "--max-tokens", "5", "--beam-size", beam_size])
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""


def test_generate_answers_empty_lines_alone(teacher_run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    main(["generate", str(teacher_run)])
    assert capsys.readouterr().out == "\n\n"


def test_no_training_pairs_are_not_all_of_them(capsys, tmp_path):
    options = [*COPY, *SIZES, *SMALL, "--agent", "mle", "--train-pairs", "0"]
    with pytest.raises(SystemExit) as stop:
        main(["train", *options, "--output", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "--train-pairs must be at least 1 or None, got 0" in capsys.readouterr().err


def test_benchmark_prints_the_fraction_of_the_floor(teacher_run, capsys):
    main(["benchmark", str(teacher_run), "--batch-size", "2", "--precisions", "float32"])
    assert "%" in capsys.readouterr().out


def test_benchmark_env_prints_every_comparison(teacher_run, capsys):
    sizes = ["--slots", "2", "--sentences", "4", "--stepping-slots", "2", "--rounds", "1"]
    main(["benchmark-env", str(teacher_run), *sizes])
    shown = capsys.readouterr().out
    for name in ("DummyVecEnv", "SyncVectorEnv", "rollout", "streaming", "floor"):
        assert name in shown


def test_a_quiet_training_says_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "console", Console(stderr=True))
    train(tmp_path / "run", "--agent", "mle", "--quiet", "--threads", "1", updates=1)
    assert capsys.readouterr() == ("", "")


def test_a_training_ends_with_its_score_and_what_comes_next(tmp_path, capsys):
    train(tmp_path / "run", "--agent", "mle", updates=2)
    *progressed, score, memory, test, write, longer = capsys.readouterr().err.splitlines()
    outcome = read_outcome(tmp_path / "run")
    shown = f"validation BLEU {outcome.validation_bleu:.1f} at update {outcome.best_update} of 2"
    assert f"is finished: {shown}, whose weights are in {tmp_path / 'run' / 'model'}" in score
    assert memory.startswith("peak memory: ")
    assert f"textgen evaluate {tmp_path / 'run'}" in test
    assert f"textgen generate {tmp_path / 'run'}" in write
    assert "--learner.updates" in longer
    assert any(line.startswith("run: 2/2  loss ") for line in progressed)


def test_a_finished_run_is_not_run_again(teacher_run):
    before = (teacher_run / "metrics.jsonl").stat().st_mtime_ns
    train(teacher_run, "--agent", "mle")
    assert (teacher_run / "metrics.jsonl").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(teacher_run, capsys):
    arguments = [*COPY, *SIZES, *SMALL, "--agent", "mle", "--learner.updates", "2"]
    line = complaint(capsys, "train", *arguments, "--output", str(teacher_run))
    assert "got --learner.updates 2 where it has 3:" in line
    assert "choose another folder" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "trian"),
        (["train", "--output", "x", "--agnet", "mle"], "--agnet"),
        (["train", "--output", "x", "--agent", "nobody"], "nobody"),
        (["train", "--output", "x", "--learner.updates", "many"], "many"),
        (["train", "--output", "x", "--learner.updates", "0"], "updates must be at least 1"),
        (
            ["train", "--output", "x", "--validation-pairs", "-1"],
            "--validation-pairs must be at least 1, got -1",
        ),
        (
            ["train", "--output", "x", "--student", "transformer", "--student.num-heads", "0"],
            "--student.num-heads must be at least 1, got 0",
        ),
        (
            ["train", "--output", "x", "--agent", "skd", "--agent.sampling.temperature", "inf"],
            "temperature must be finite and above 0, got inf",
        ),
        (["train"], "--output must be given, got none (see"),
        (["train", "--output", "x", "--task", "text"], "--task.train must be given, got none"),
        (["train", "--output", "x", "y"], "textgen train takes fewer words, got further y (see"),
        (["train", "--output", "x", "--agent", "imitkd_ful"], "perhaps you meant imitkd_full (see"),
        (["train", "--output", "x", "--agent.k", "1"], "is an option of textgen train --agent"),
        (
            ["train", "--output", "x", "--learner.batch-size", "x"],
            "--learner.batch-size must be a whole number, got 'x'",
        ),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate"], "runs must be at least one folder, got none (see textgen evaluate --help)"),
        (["generate", "nowhere"], "nowhere"),
        (["evaluate", "x", "--beam-size", "0"], "--beam-size must be at least 1, got 0"),
        (["evaluate", "x", "--beam-size", "-3"], "--beam-size must be at least 1, got -3"),
        (["evaluate", "x", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["generate", "x", "--beam-size", "0"], "--beam-size must be at least 1, got 0"),
        (["generate", "x", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["generate", "x", "--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    options = [*COPY, *SIZES, "--agent", "mle", "--output", str(tmp_path / "file" / "run")]
    line = complaint(capsys, "train", *options)
    assert "file" in line


def test_an_agent_without_the_teacher_it_needs_is_one_line(capsys, tmp_path):
    arguments = [*COPY, *SIZES, *SMALL, "--agent", "word_kd", "--output", str(tmp_path / "run")]
    assert "teacher" in complaint(capsys, "train", *arguments)


def test_an_unfinished_run_is_not_evaluated(teacher_run, capsys, tmp_path):
    (tmp_path / "config.json").write_text((teacher_run / "config.json").read_text())
    assert "finished" in complaint(capsys, "evaluate", str(tmp_path))


@pytest.mark.parametrize("which", ["decode", "env", "losses", "peers"])
def test_a_benchmark_may_be_two_words(which, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", which, "--help"])
    assert not stop.value.code
    assert f"textgen benchmark-{which} " in capsys.readouterr().out
    assert f"got {which}\n" in complaint(capsys, "benchmark", f"./{which}")


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "train",
        "evaluate",
        "generate",
        "export",
        "benchmark",
        "benchmark-decode",
        "benchmark-env",
        "teacher",
    ],
)
def test_help_of_each_command_is_shown(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert not stop.value.code
    assert f"textgen {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--output", ""], ["--output="]])
def test_an_empty_path_is_not_the_working_directory(capsys, words):
    assert "at least one character" in complaint(capsys, "train", *COPY, "--agent", "mle", *words)
    complaint(capsys, "report", "")
