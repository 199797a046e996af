"""The command neither runs what a folder brings nor reads standard input for a question."""

import json
import subprocess
import sys

import pytest

from tests.support.pretrained import FAMILIES, save_family

MAIN = "from textgen_experiments.cli import main; main()"
PAIRS = "a w1\tw1 a\nw2 w3\tw3 w2\nw4 w5\tw5 w4\n"


@pytest.fixture
def folder(tmp_path):
    """Write a model whose code, if it ran, would write the file `ran`."""
    folder = save_family(FAMILIES["llama"], tmp_path / "model")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    return folder


def name_code(folder, name, auto_map):
    content = json.loads((folder / name).read_text())
    content |= {"auto_map": auto_map}
    if name == "config.json":
        content["model_type"] = "own"  # unknown to the library without the code
    (folder / name).write_text(json.dumps(content))


def run(*arguments, home):
    """Run the command with "y" in every line of standard input."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        input="y\n" * 1000, capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def assert_refused(done, message):
    lines = [line for line in done.stderr.splitlines() if not line.startswith("precision: ")]
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done.stderr
    assert message in lines[0]


def test_generate_runs_no_code_of_a_model(folder, tmp_path):
    name_code(folder, "config.json", {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    assert_refused(run("generate", folder, home=tmp_path), "the model brings code of its own")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_no_command_runs_code_of_a_model(folder, tmp_path):
    name_code(folder, "tokenizer_config.json", {"AutoTokenizer": ["own.T", "own.T"]})
    data = tmp_path / "pairs.tsv"
    data.write_text(PAIRS * 20)
    task = ("train", "--task", "text", "--task.train", data, "--output", tmp_path / "run")
    commands = (
        ("generate", folder),
        (*task, "--teacher", folder),
        (*task, "--student-init", folder, "--agent", "mle"),
        ("export", folder, "--format", "safetensors", "--output", tmp_path / "exported"),
    )
    for command in commands:
        assert_refused(run(*command, home=tmp_path), "the model brings code of its own")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_code_of_a_data_set_never_runs(folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    task = ("--task", "hub", "--task.path", data)
    done = run("train", *task, "--teacher", folder, "--output", tmp_path / "run", home=tmp_path)
    assert_refused(done, "Dataset scripts are no longer supported")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_no_line_of_standard_input_is_lost(folder, tmp_path):
    done = run("generate", folder, "--max-tokens", 2, "--batch-size", 500, home=tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1000), done.stderr
