"""The names that each package offers: they exist, and cost no optional package."""

import ast
import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import textgen_env
from textgen_experiments.cli import main

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "textgen_env": "textgen_env",
    "textgen_agents": "agents",
    "textgen_experiments": "experiments",
}
OPTIONAL = ("transformers", "stable_baselines3", "sacrebleu", "urllib3", "datasets", "ctranslate2")


def doors():
    """Yield the import name of each package that has an `__all__`."""
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("__init__.py")):
            targets = [
                ast.unparse(target)
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.Assign)
                for target in node.targets
            ]
            if "__all__" in targets:
                yield ".".join([package, *path.parent.relative_to(ROOT / folder).parts])


DOORS = list(doors())


@pytest.mark.parametrize("name", DOORS)
def test_every_name_of_a_door_exists_once(name):
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert not [each for each in module.__all__ if not hasattr(module, each)]


@pytest.mark.parametrize("name", DOORS)
def test_no_name_of_a_door_hides_a_file(name):
    module = importlib.import_module(name)
    files = {path.stem for path in Path(str(module.__file__)).parent.glob("*.py")}
    assert not files & set(module.__all__)


def test_what_the_documents_name_is_at_the_front_door():
    documented = {"NeuralExpert", "Task", "TextTask", "Pair", "Examples", "Trajectories", "Writer"}
    documented |= {"TextGenVectorEnv", "TextGenEnv", "Transformer", "Recurrent", "load_model"}
    documented |= {"save_model", "greedy", "sample", "BeamSearch", "Sampling"}
    assert documented <= set(textgen_env.__all__)


def test_importing_the_environment_pulls_in_no_optional_package():
    code = f"import sys, textgen_env\nprint(set({OPTIONAL}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_version_is_that_of_the_installed_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert textgen_env.__version__ == version(project["name"]) == project["version"]


def test_the_command_line_prints_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"textgen {textgen_env.__version__}\n"


def test_the_module_is_the_command_line():
    command = [sys.executable, "-m", "textgen_env", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"textgen {textgen_env.__version__}\n"
