"""Parts from outside the repository, as docs/extending.md shows them: a package, and a plugin."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
PROGRAM = [sys.executable, "-c", "from textgen_experiments.cli import main; main()"]
PARTS = ["--agent", "clone", "--task", "reverse", "--student", "bag", "--teacher", "None"]
SMALL = ["--student.width", "8", "--learner.batch-size", "4", "--validation-pairs", "4"]
SMALL += ["--learner.updates", "2", "--learner.evaluate-every", "2", "--precision", "float32"]
MAKE = (
    "import gymnasium, textgen_env; e = gymnasium.make('TextGen/Reverse-v0'); e.reset(seed=0); "
    "print(e.unwrapped.vector_env.reward.__name__)"
)
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "textgen-parts"
version = "1.0"
[tool.setuptools]
py-modules = ["my_parts"]
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run(folder, *arguments, program=PROGRAM, paths=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    return subprocess.run(
        [*program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def done(process):
    assert process.returncode == 0, process.stderr
    return process.stdout


def the_one_line(process):
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1
    return process.stderr


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """Return a folder with the page's parts in the file my_parts.py."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "my_parts.py").write_text("\n".join(blocks("python")))
    return folder


@pytest.fixture(scope="module")
def plugin_run(plugin):
    """Return the folder of a run that was trained with the plugin."""
    done(run(plugin, "train", "--plugin", "my_parts.py", *PARTS, *SMALL, "--output", "run"))
    return plugin / "run"


def test_an_installed_package_is_there_for_every_command(tmp_path):
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    (project / "pyproject.toml").write_text(PYPROJECT + blocks("toml")[0])
    without_register = re.sub(r"(?m)^\w+\.register\(.*\n", "", "\n".join(blocks("python")))
    (project / "my_parts.py").write_text(without_register)
    install = [
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "--target",
    ]
    done(run(tmp_path, str(site), str(project), program=[sys.executable, "-m", *install]))
    done(run(tmp_path, "train", *PARTS, *SMALL, "--output", "run", paths=[site]))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["plugins"] == [
        "textgen-parts"
    ]
    done(run(tmp_path, "evaluate", "run", paths=[site]))
    done(run(tmp_path, "report", "run", paths=[site]))
    options = ["export", "run", "--format", "safetensors", "--output", "exported"]
    done(run(tmp_path, *options, paths=[site]))
    made = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (made["architecture"], made["plugin"]) == ("bag", "textgen-parts")
    found = run(tmp_path, program=[sys.executable, "-c", MAKE], paths=[site])
    assert done(found) == "right_length\n"


def test_a_run_says_which_plugin_it_used(plugin_run):
    content = json.loads((plugin_run / "config.json").read_text())
    assert content["plugins"] == ["my_parts.py"]
    assert content["experiment"]["task"]["type"] == "ReverseConfig"
    assert json.loads((plugin_run / "model" / "config.json").read_text())["plugin"] == "my_parts.py"


@pytest.mark.parametrize("command", [["report"], ["generate"], ["export", "--format", "hf"]])
def test_a_command_without_the_plugin_names_it(plugin_run, command):
    line = the_one_line(run(plugin_run.parent, command[0], "run", *command[1:]))
    again = f"textgen {' '.join([command[0], 'run', *command[1:]])} --plugin my_parts.py"
    assert "needs the plugin my_parts.py, which is not loaded" in line
    assert f"run `{again}`" in line


def test_processes_of_parallel_runs_load_the_plugin(plugin_run):
    program = (
        "from pathlib import Path; from textgen_env.registry import load_plugin; "
        "load_plugin('my_parts.py'); "
        "from textgen_experiments.runs.folder import read_config; "
        "from textgen_experiments.runs.parallel import train_in_parallel; "
        "train_in_parallel({Path('again'): read_config(Path('run')).experiment})"
    )
    done(run(plugin_run.parent, program=[sys.executable, "-c", program]))
    again = json.loads((plugin_run.parent / "again" / "config.json").read_text())
    assert again["plugins"] == ["my_parts.py"]


def test_commands_with_the_plugin_read_the_run(plugin_run):
    folder = plugin_run.parent
    done(run(folder, "--plugin", "my_parts", "evaluate", "run"))
    done(run(folder, "report", "run", "--plugin=my_parts.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "plugin mine.py must be a file that is there, got none"),
        ("1 / 0", "plugin mine.py, line 1, must be importable, got ZeroDivisionError"),
        (
            "from textgen_agents import AGENTS\nfrom textgen_agents.seqkd import SeqKD\n"
            "AGENTS.register('mle', SeqKD)",
            "agent must have a name of its own, got 'mle', which is taken by textgen_agents",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    assert message in the_one_line(run(tmp_path, "report", "run", "--plugin", "mine.py"))
