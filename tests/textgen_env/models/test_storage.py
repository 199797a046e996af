"""Tests of saving and loading: models are restored to the bit, damaged folders are reported."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.toy import attending
from textgen_env.models import STUDENTS
from textgen_env.models.config import ModelConfig
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import ModelFileError, load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.registry import MissingPluginError, RegistryError
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import SpecialTokens

WORDS = ("one", "two", "three")
SPECIAL = SpecialTokens(pad=0, start=1, end=3)


def transformer():
    config = TransformerConfig(20, width=8, num_heads=2, feed_forward=16, dropout=0)
    return Transformer(config, SPECIAL)


def recurrent(special=SPECIAL):
    return Recurrent(RecurrentConfig(20, width=8, num_decoder_layers=1), special)


def hybrid():
    return Hybrid(HybridConfig(20, width=8, num_heads=2, feed_forward=16, unit="gru"), SPECIAL)


def attending_hybrid():
    config = HybridConfig(20, width=8, num_heads=2, feed_forward=16, unit="sru_pp")
    return attending(Hybrid(config, SPECIAL))


@pytest.fixture(params=[transformer, recurrent, hybrid, attending_hybrid])
def model(request):
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a saved recurrent model."""
    save_model(recurrent(SpecialTokens()), tmp_path / "model", Tokenizer.from_words(WORDS))
    return tmp_path / "model"


def rewrite(folder, change):
    path = folder / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_back_bit_by_bit(model, dtype, tmp_path):
    model = model.to(dtype)
    save_model(model, tmp_path / "new" / "model")
    loaded = load_model(tmp_path / "new" / "model", dtype)
    assert type(loaded) is type(model)
    assert (loaded.config, loaded.special) == (model.config, SPECIAL)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_are_converted_when_asked(model, tmp_path):
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model", torch.bfloat16)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(torch.bfloat16))


def test_a_loaded_model_can_be_trained_on(model, tmp_path):
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    loaded.sequence_logits(torch.tensor([[4, 3]]), torch.tensor([[5, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_the_embedding_is_stored_once(model, tmp_path):
    save_model(model, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert stored.keys() == dict(model.named_parameters()).keys()
    assert sum(20 in value.shape for value in stored.values()) == 1


def test_loading_draws_no_random_number(folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(folder)
    assert torch.equal(torch.rand(3), expected)


def test_loading_imports_no_compiler(folder):
    code = (
        "import pathlib, sys; from textgen_env.models.storage import load_model; "
        f"load_model(pathlib.Path({str(folder)!r})); print('torch._dynamo' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_the_tokenizer_comes_back(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(["three one"])) == ["three one"]


def test_a_saved_model_is_replaced_and_its_card_kept(folder):
    (folder / "README.md").write_text("card")
    (folder / "figures").mkdir()
    (folder / "figures" / "one.txt").write_text("1")
    save_model(transformer(), folder)
    assert isinstance(load_model(folder), Transformer)
    names = sorted(path.name for path in folder.iterdir())
    kept = ["README.md", "config.json", "figures", "model.safetensors", "weights.sha256"]
    assert names == kept
    assert (folder / "figures" / "one.txt").read_text() == "1"
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_kill_left_set_aside_is_put_back(folder):
    (folder / "README.md").write_text("card")
    folder.rename(folder.with_name(f".{folder.name}.old"))  # killed between the two renames
    save_model(transformer(), folder)
    assert (folder / "README.md").read_text() == "card"
    assert isinstance(load_model(folder), Transformer)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failed_save_leaves_the_old_model_and_nothing_else(folder):
    class Unwritable(Tokenizer):
        def save(self, path):
            raise OSError("disk full")

    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match="disk full"):
        save_model(
            recurrent(SpecialTokens()), folder, Unwritable(Tokenizer.from_words(WORDS).backend)
        )
    assert (folder / "model.safetensors").read_bytes() == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_kill_between_the_renames_loses_neither_model(folder):
    aside = folder.with_name(".model.old")
    folder.rename(aside)  # what a kill at that moment leaves
    with pytest.raises(ModelFileError, match="must be an existing file"):
        load_model(folder)
    load_model(aside)
    save_model(recurrent(), folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_other_things_are_not_written_over(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("text")
    for name in ("run", "file"):
        with pytest.raises(ModelFileError, match=f"{name} must not exist, be empty or hold"):
            save_model(recurrent(), tmp_path / name)
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_a_tokenizer_larger_than_the_model_is_rejected(tmp_path):
    tokenizer = Tokenizer.from_words([f"w{index}" for index in range(18)])
    with pytest.raises(ValueError, match="at most the model's 20 pieces, got 21"):
        save_model(recurrent(), tmp_path / "model", tokenizer)


def test_a_tokenizer_with_other_special_tokens_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"special tokens, .*end=3\), got .*end=2"):
        save_model(recurrent(), tmp_path / "model", Tokenizer.from_words(WORDS))


@dataclass(frozen=True)
class WithLayers(ModelConfig):
    layers: tuple[int, ...] = (1, 2)

    def build(self, special=None):
        raise NotImplementedError


def test_a_model_that_is_not_registered_is_told_how(make_table_model, tiny_task, tmp_path):
    with pytest.raises(RegistryError, match="model must be registered, got a TableModel: call STU"):
        save_model(make_table_model(tiny_task, 0), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_field_that_the_file_does_not_keep_is_named(monkeypatch, tmp_path):
    model = recurrent()
    model.config = WithLayers(20, 8)
    monkeypatch.setattr(STUDENTS, "_entries", {"with_layers": model.config})
    with pytest.raises(ModelFileError, match=r"WithLayers.layers must be bool, int, float or str"):
        save_model(model, tmp_path / "model")


def test_a_model_of_a_plugin_that_is_not_loaded_names_it(folder):
    rewrite(folder, lambda d: d.update(architecture="mine", plugin="my_module"))
    with pytest.raises(MissingPluginError, match="needs the plugin my_module, which is not loaded"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    load = load_tokenizer if name == "tokenizer.json" else load_model
    with pytest.raises(ModelFileError, match=f"{name} must be an existing file, got none"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"nowhere/config.json must be an existing file"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(architecture="lstm"), "one of .*'recurrent'.* got 'lstm'"),
        (lambda d: d.update(architecture=["recurrent"]), "architecture must be one of"),
        (lambda d: d.pop("architecture"), "architecture must be one of .* got None"),
        (lambda d: d.pop("width"), "must have the field width, got none"),
        (lambda d: d.pop("special"), "must have the field special, got none"),
        (lambda d: d.update(depth=3), "fields must be .*'width'.* got depth besides"),
        (lambda d: d["special"].pop("end"), "must have the field special.end"),
        (lambda d: d["special"].update(unknown=3), "got special.unknown besides"),
        (lambda d: d.update(width="8"), "width must be int, got '8'"),
        (lambda d: d.update(dropout=True), "dropout must be float, got True"),
        (lambda d: d.update(width=7), "width must be even and at least 2, got 7"),
        (lambda d: d.update(dropout=2.0), "dropout must be in"),
    ],
)
def test_a_wrong_configuration_is_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ModelFileError, match=f"config.json.*{message}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("lstm", "unit must be one of ssru, sru, sru_pp, gru, got 'lstm'"),
        (3, "unit must be str, got 3"),
    ],
)
def test_a_wrong_choice_is_named(tmp_path, unit, message):
    save_model(hybrid(), tmp_path)
    rewrite(tmp_path, lambda d: d.update(unit=unit))
    with pytest.raises(ModelFileError, match=f"config.json: {message}"):
        load_model(tmp_path)


@pytest.mark.parametrize(("text", "found"), [("{", "JSON"), ("[1]", "object, got")])
def test_a_configuration_that_is_no_object_is_named(folder, text, found):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=f"config.json must .*{found}"):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("norm.weight"),
        lambda weights: weights.update(extra=torch.zeros(1)),
        lambda weights: weights.update({"norm.weight": torch.zeros(9)}),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_of_another_model_are_named(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ModelFileError, match=r"model.safetensors must fit .*config.json"):
        load_model(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_named(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelFileError, match=r"model.safetensors must be a whole safetensors"):
        load_model(folder)


def test_a_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"tokenizer.json must be a tokenizer"):
        load_tokenizer(folder)
