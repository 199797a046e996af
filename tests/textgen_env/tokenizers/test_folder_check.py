"""A pretrained model's folder is data: nothing that it names is run, fetched or followed."""

import ast
import builtins
import json
from pathlib import Path

import pytest

from tests.support.pretrained import FAMILIES, save_family
from textgen_env.models.huggingface.load import PretrainedError
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tokenizers.folder_check import UnsafeFolderError, check_is_data
from textgen_env.tokenizers.pretrained import PretrainedTokenizer

ROOT = Path(__file__).parents[3]
LOADERS = {"from_pretrained", "load_dataset"}


@pytest.fixture
def folder(tmp_path):
    return save_family(FAMILIES["llama"], tmp_path / "model")


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    def asked(*_):
        raise AssertionError("nothing may ask the terminal")

    monkeypatch.setattr(builtins, "input", asked)


def change(folder, name, **fields):
    """Change fields of a JSON file, which need not exist."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


UNSAFE = [
    ("config.json", {"auto_map": {"AutoConfig": "own.Config"}}, "no code, got auto_map"),
    ("config.json", {"auto_map": {"AutoModelForCausalLM": "a/b--own.Model"}}, "no code"),
    ("config.json", {"custom_pipelines": {"x": {"impl": "own.Pipe"}}}, "no code, got custom_pipe"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tok", None]}}, "no code"),
    ("tokenizer_config.json", {"auto_map": ["own.Tok", None]}, "no code"),
    ("generation_config.json", {"custom_generate": "a/b"}, "no code"),
    ("config.json", {"attn_implementation": "somebody/kernel"}, "no kernel"),
    ("config.json", {"_attn_implementation": "somebody/kernel@v1:run"}, "no kernel"),
    ("config.json", {"attn_implementation": "flash_attention_2"}, "no kernel"),
    ("config.json", {"attn_implementation": {"": "sdpa", "text_config": "a/b"}}, "no kernel"),
    ("config.json", {"text_config": {"attn_implementation": ["a/b"]}}, "no kernel"),
    ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "weights of plain numbers"),
    ("config.json", {"transformers_weights": "adapter_model.bin"}, "weights of plain numbers"),
    ("adapter_config.json", {"base_model_name_or_path": "a/b"}, "must hold a whole model"),
    ("model.safetensors.index.json", {"weight_map": {"w": "../x.safetensors"}}, "same folder"),
    ("model.safetensors.index.json", {"weight_map": {"w": "/x.safetensors"}}, "same folder"),
    ("model.safetensors.index.json", {"weight_map": {"w": 1}}, "same folder"),
    ("model.safetensors.index.json", {"weight_map": "../x"}, "same folder"),
]


@pytest.mark.parametrize(("name", "fields", "message"), UNSAFE)
def test_a_folder_that_asks_for_more_than_data_is_refused(folder, name, fields, message):
    change(folder, name, **fields)
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    for load, error in (
        (load_model, PretrainedError),
        (load_tokenizer, PretrainedError),
        (PretrainedTokenizer.load, UnsafeFolderError),
    ):
        with pytest.raises(error, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    assert not (folder / "ran").exists()


def test_harmless_fields_are_accepted(folder):
    change(folder, "config.json", attn_implementation="sdpa", auto_map={}, text={"auto_map": None})
    change(folder, "model.safetensors.index.json", weight_map={"w": "model.safetensors"})
    check_is_data(folder)
    load_model(folder)


def test_weights_in_several_files_are_read(folder):
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    model.model.save_pretrained(folder, max_shard_size="4KB")
    assert (folder / "model.safetensors.index.json").exists()
    again = load_model(folder).state_dict()
    assert all(value.equal(again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"[1]", b'"auto_map"'])
def test_a_file_that_cannot_be_read_is_left_to_its_reader(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    check_is_data(tmp_path)


def calls(path):
    """Yield the name and the node of each call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            named = node.func.attr if isinstance(node.func, ast.Attribute) else None
            yield (node.func.id if isinstance(node.func, ast.Name) else named), node


def test_every_loader_is_told_to_trust_no_code_and_nothing_asks():
    found = 0
    for room in ("textgen_env", "agents", "experiments"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for name, call in calls(path):
                assert name not in ("input", "getpass"), path
                if name in LOADERS:
                    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                    assert given.get("trust_remote_code") == "False", (path, call.lineno)
                    found += 1
    assert found >= 6
