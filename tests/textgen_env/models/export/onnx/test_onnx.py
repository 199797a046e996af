"""Exports to ONNX: the same greedy tokens as the model's, by this project and by the page."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from onnxruntime import InferenceSession

from tests.support.export_models import WORDS, sources, varied_transformer
from tests.support.export_students import STUDENTS_BY_NAME
from tests.support.variants import mostly_slow
from textgen_env.generation.decoding import decode_all
from textgen_env.models.export.common import ExportError
from textgen_env.models.export.onnx import save
from textgen_env.models.export.onnx.load import load_onnx
from textgen_env.models.export.onnx.save import save_onnx
from textgen_env.models.model_files import DIGESTS, ModelFileError
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.subword import Tokenizer

PAGE = Path(__file__).parents[5] / "docs" / "onnx.md"
TOKENIZER = Tokenizer.from_words(WORDS)
MAX_STEPS = 20
FAST = "ssru"  # tracing takes seconds: the other kinds are slow tests


@pytest.fixture(scope="module", params=mostly_slow(STUDENTS_BY_NAME, FAST))
def exported(request, tmp_path_factory):
    """Return a student and the folder of its graphs."""
    model, folder = STUDENTS_BY_NAME[request.param](), tmp_path_factory.mktemp("onnx")
    save_onnx(model, TOKENIZER, folder, "float32", MAX_STEPS)
    return model, folder


def test_greedy_tokens_are_the_same(exported):
    model, folder = exported
    generate = load_onnx(folder)
    for rows, longest in ((40, 12), (1, 3), (1, 12), (4, 300)):
        source = sources(rows, longest)
        assert torch.equal(generate(source, MAX_STEPS), decode_all(model, source, MAX_STEPS))


def test_the_page_writes_the_same_tokens(exported, capsys):
    model, folder = exported
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(list(filter(None, program.splitlines()))) <= 30
    place, text = "runs/small/export/onnx", "Und Gott sprach: Es werde Licht!"
    assert place in program
    assert text in program
    names = {}
    exec(program.replace(place, str(folder)).replace(text, "w1 w5"), names)
    texts = ["w1 w5", "w3 w9 w4 w11 w5", "w1", "w8 " * 30 + "w7"]
    expected = decode_all(model, encode_sources(texts, TOKENIZER), MAX_STEPS)
    written = torch.from_numpy(names["write"](texts))
    assert torch.equal(written, expected[:, : written.shape[1]])
    assert not expected[:, written.shape[1] :].any()
    assert capsys.readouterr().out == f"{TOKENIZER.decode(expected[:1].tolist())}\n"


def test_the_description_names_what_the_graphs_take_and_give(exported):
    model, folder = exported
    about = json.loads((folder / "decoding.json").read_text())
    assert about["special"] == {"pad": 0, "start": 1, "end": 2}
    assert (about["vocab_size"], about["max_steps"]) == (model.vocab_size, MAX_STEPS)
    encoder, step = (InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "step"))
    given, following = about["memory"] + about["states"], [f"next_{n}" for n in about["states"]]
    assert [each.name for each in encoder.get_inputs()] == ["source"]
    assert [each.name for each in encoder.get_outputs()] == given
    assert [each.name for each in step.get_inputs()] == ["previous", *given]
    assert [each.name for each in step.get_outputs()] == ["logits", *following]
    assert encoder.get_inputs()[0].shape == ["batch", "source_length"]
    assert all(each.shape[0] == "batch" for each in step.get_inputs() + step.get_outputs())


def test_graphs_do_not_name_files_of_the_machine_that_wrote_them(exported):
    for path in exported[1].iterdir():
        assert b".py" not in path.read_bytes(), path


def test_int8_is_near(exported, tmp_path):
    model, folder = exported
    shutil.copytree(folder, tmp_path / "int8")
    for name in ("encoder.onnx", "step.onnx"):
        save.quantize_graph(tmp_path / "int8" / name)
    (tmp_path / "int8" / DIGESTS).unlink()
    source = sources(40)
    int8 = load_onnx(tmp_path / "int8")(source, MAX_STEPS)[:, 0]
    float32 = decode_all(model, source, MAX_STEPS)[:, 0]
    assert (int8 == float32).float().mean() > 0.6


def test_the_tokenizer_is_read_here_too(exported):
    assert load_tokenizer(exported[1]).encode(["w3 w5"]) == TOKENIZER.encode(["w3 w5"])


@pytest.mark.parametrize("name", ["encoder.onnx", "step.onnx", "decoding.json"])
def test_a_truncated_file_is_reported(name, exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported[1], folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    if name.endswith(".onnx"):
        with pytest.raises(ModelFileError, match=rf"{name} must be as it was saved"):
            load_onnx(folder)
        (folder / DIGESTS).unlink()
    with pytest.raises(ExportError, match="must hold graphs for ONNX Runtime"):
        load_onnx(folder)


def test_a_tokenizer_of_other_tokens_is_refused_before_anything_is_written(tmp_path):
    model, _ = varied_transformer()
    with pytest.raises(ExportError, match="must have its tokenizer's special tokens"):
        save_onnx(model, Tokenizer.from_words([f"w{n}" for n in range(80)]), tmp_path, "float32", 5)
    assert not list(tmp_path.iterdir())
