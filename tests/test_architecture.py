"""The rules of structure, on the syntax tree: imports one way, packages confined, budgets."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("textgen_env", "agents", "experiments")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {
    "textgen_env": {"textgen_env"},
    "agents": {"textgen_env", "agents"},
    "experiments": {"textgen_env", "agents", "experiments"},
}
SHARED_BY_AGENTS = {
    "agent", "bases", "batches", "behaviors", "buffer", "checkpoint", "divergences",
    "divergences_topk", "evaluation", "exposure", "exposure_panel", "labels", "learner",
    "learner_config", "losses", "processes", "regularizers", "rollout", "schedules", "__init__",
}  # fmt: skip
CONFINED = {
    "stable_baselines3": {
        "textgen_env/adapters/sb3.py",
        "agents/ppo.py",
        "experiments/benchmark_env.py",
    },
    "sacrebleu": {"agents/evaluation.py"},
    "urllib3": {"textgen_env/completions.py"},
    "rouge_score": {"agents/evaluation.py"},
    "tensorboard": {"experiments/logging.py"},
    "accelerate": {"agents/learner.py", "agents/processes.py"},
    "ctranslate2": {"textgen_env/models/export_ctranslate2.py"},
    "transformers": {
        "experiments/peers_models.py",
        "textgen_env/hf_tokenizer.py",
        "textgen_env/models/export_hf.py",
        "textgen_env/models/huggingface.py",
        "textgen_env/models/huggingface_cache.py",
        "textgen_env/models/huggingface_causal.py",
        "textgen_env/models/huggingface_model.py",
        "textgen_env/models/huggingface_seq2seq.py",
    },
    "peft": {"textgen_env/models/huggingface.py"},
    "huggingface_hub": {"textgen_env/models/huggingface.py", "textgen_env/tasks/tables.py"},
    "datasets": {"textgen_env/tasks/tables.py"},
    "tyro": {
        f"experiments/{name}.py"
        for name in (
            "benchmark",
            "benchmark_decode",
            "benchmark_env",
            "benchmark_losses",
            "benchmark_peers",
            "cli",
            "evaluate",
            "export",
            "generate",
            "report",
        )
    },
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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    ours = {module.split(".")[0] for module in imported(path)} & set(PACKAGES)
    assert ours <= allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_third_party_packages_stay_in_their_files(path):
    for module in imported(path):
        for package, places in CONFINED.items():
            if package in module.split("."):
                assert name_of(path) in places, f"{package} belongs in {places}"


@pytest.mark.parametrize("path", sorted((ROOT / "agents").glob("*.py")), ids=name_of)
def test_no_algorithm_imports_another(path):
    if path.stem == "__init__":
        return
    modules = {m.split(".")[1] for m in imported(path) if m.startswith("agents.")}
    assert modules <= SHARED_BY_AGENTS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_keep_to_their_budgets(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"


def test_models_know_nothing_of_the_environment():
    for path in (ROOT / "textgen_env" / "models").glob("*.py"):
        for module in imported(path):
            ours = module.startswith("textgen_env.")
            leaf = module.startswith(("textgen_env.models", "textgen_env.types"))
            leaf = leaf or module in {"textgen_env.tokenizer", "textgen_env.hf_tokenizer"}
            assert leaf or not ours, f"{path.name} imports {module}"
