"""The rules of structure and language, on the syntax tree.

Imports go one way, packages are confined, sizes are bounded, docstrings are sentences, and a name
means one thing.
"""

import ast
from pathlib import Path

import pytest

from tests.project.figures import (
    ambiguous_names,
    functions_without_verb,
    long_files,
    questioning_docstrings,
    short_docstrings,
)

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "textgen_env": "textgen_env",
    "textgen_agents": "agents",
    "textgen_experiments": "experiments",
}
"""Names that are imported, and the folders that hold them."""
FILES = sorted(path for folder in PACKAGES.values() for path in (ROOT / folder).rglob("*.py"))
FLOORS = (  # what stands in one line may import what stands in it and in the lines above
    (
        "textgen_env.bounds",
        "textgen_env.digests",
        "textgen_env.files",
        "textgen_env.types",
        "textgen_env.dynamics",
        "textgen_env.registry",
    ),
    ("textgen_env.tokenizers",),
    ("textgen_env.models",),
    ("textgen_env.generation",),
    ("textgen_env.tasks",),
    ("textgen_env.experts",),
    ("textgen_env.envs",),
    ("textgen_env.testing", "textgen_env.integrations", "textgen_env"),
    ("textgen_agents.losses",),
    ("textgen_agents.rollouts",),
    ("textgen_agents",),
    ("textgen_agents.training",),
    ("textgen_agents.evaluation",),
    ("textgen_agents.integrations",),
    ("textgen_experiments.runs",),
    ("textgen_experiments.evaluation",),
    ("textgen_experiments.models",),
    ("textgen_experiments.serving",),
    ("textgen_experiments.reporting",),
    ("textgen_experiments.recipes",),
    ("textgen_experiments.benchmarks",),
    ("textgen_experiments",),
)
SHARED_BY_AGENTS = {"agent", "bases", "__init__"}
CONFINED = {
    "stable_baselines3": {
        "textgen_env/integrations/sb3.py",
        "agents/integrations/sb3_ppo.py",
        "experiments/benchmarks/env.py",
    },
    "openenv": {"textgen_env/integrations/openenv.py"},
    "sacrebleu": {"agents/evaluation/bleu_metric.py", "agents/evaluation/quality.py"},
    "urllib3": {
        "textgen_env/experts/bounded_http.py",
        "textgen_env/experts/completions_client.py",
    },
    "rouge_score": {"agents/evaluation/quality.py"},
    "tensorboard": {"experiments/runs/run_log.py"},
    "accelerate": {
        f"agents/training/{name}.py" for name in ("learner", "gradients", "distributed")
    },
    "submitit": {"experiments/runs/cluster.py"},
    "ctranslate2": {"textgen_env/models/export/ctranslate2.py"},
    "onnxruntime": {f"textgen_env/models/export/onnx/{name}.py" for name in ("load", "save")},
    "transformers": {
        "experiments/benchmarks/peers/models.py",
        "textgen_env/tokenizers/pretrained.py",
        "textgen_env/tokenizers/chat.py",
        "textgen_env/models/export/huggingface.py",
        "textgen_env/models/huggingface/load.py",
        "textgen_env/models/huggingface/cache.py",
        "textgen_env/models/huggingface/causal.py",
        "textgen_env/models/huggingface/fewer_layers.py",
        "textgen_env/models/huggingface/model.py",
        "textgen_env/models/huggingface/seq2seq.py",
    },
    "peft": {"textgen_env/models/huggingface/load.py"},
    "huggingface_hub": {"textgen_env/models/huggingface/load.py", "textgen_env/tasks/tables.py"},
    "datasets": {"textgen_env/tasks/tables.py"},
    "tyro": {
        f"experiments/{name}.py"
        for name in (
            "command_line/commands",
            "command_line/parse",
            "command_line/train",
            "benchmarks/step_floor",
            "benchmarks/decode",
            "benchmarks/env",
            "benchmarks/losses",
            "benchmarks/serve",
            "benchmarks/peers/compare",
            "evaluation/compare_settings",
            "evaluation/evaluate",
            "models/export",
            "models/generate",
            "recipes/study",
            "runs/choices",
            "reporting/report",
            "serving/serve",
        )
    },
    "fastapi": {
        "textgen_env/integrations/openenv.py",
        *(f"experiments/serving/{name}.py" for name in ("app", "errors", "service")),
    },
    "uvicorn": {"experiments/serving/uvicorn_server.py"},
    "prometheus_client": {f"experiments/serving/{name}.py" for name in ("app", "metrics")},
    "plotly": {"experiments/reporting/page.py"},
    "jinja2": {"experiments/reporting/page.py"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports must be absolute"
            yield str(node.module)


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    """Return the name under which the file at `path` is imported."""
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    package = next(name for name, where in PACKAGES.items() if where == folder)
    return ".".join([package, *parts]).removesuffix(".__init__")


def floor_of(module):
    """Return the line of `FLOORS` with the longest name that `module` begins with."""
    found = [
        (len(room), floor)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if f"{module}.".startswith(f"{room}.")
    ]
    return max(found)[1]


def imported_modules(path):
    """Yield each module of this project that the file at `path` imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    if path.name == "__main__.py":
        return  # a program, which nothing imports
    for module in imported_modules(path):
        assert floor_of(module) <= floor_of(module_of(path)), module


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_packages_are_imported_under_the_names_that_collide_with_none(path):
    assert not {module.split(".")[0] for module in imported(path)} & {"agents", "experiments"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_third_party_packages_stay_in_their_files(path):
    for module in imported(path):
        for package, places in CONFINED.items():
            if package in module.split(".") and module.split(".")[0] not in PACKAGES:
                assert name_of(path) in places, f"{package} belongs in {places}"


@pytest.mark.parametrize("path", sorted((ROOT / "agents").glob("*.py")), ids=name_of)
def test_no_algorithm_imports_another(path):
    if path.stem == "__init__":
        return
    algorithms = {each.stem for each in (ROOT / "agents").glob("*.py")} - SHARED_BY_AGENTS
    modules = {m.split(".")[1] for m in imported(path) if m.startswith("textgen_agents.")}
    assert not modules & algorithms


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_keep_to_their_budget(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"


@pytest.mark.parametrize(
    "offenders",
    [
        long_files,
        questioning_docstrings,
        short_docstrings,
        functions_without_verb,
        ambiguous_names,
    ],
)
def test_the_house_has_no(offenders):
    found = offenders()
    assert not found, "\n".join(["", *found])
