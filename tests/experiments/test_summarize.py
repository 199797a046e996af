"""The whole comparison, small, on a package of a hundred articles."""

import json
from dataclasses import replace

import pytest

from agents.learner import LearnerConfig
from experiments import configs, summarize
from experiments.configs import TASKS
from experiments.summarize import SummarizeOptions, summarize_experiments
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.descriptions import ARTICLES, PACKAGE

SMALL = LearnerConfig(updates=2, batch_size=4, evaluate_every=2)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Options for runs of two updates on articles that all three splits have some of."""
    path = tmp_path / PACKAGE / ARTICLES
    path.parent.mkdir(parents=True)
    (path.parents[1] / "__init__.py").touch()
    texts = {"extract": "An article is a text.", "description": "Text"}
    path.write_text(json.dumps({f"article {number}": texts for number in range(100)}))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the runs' own processes
    monkeypatch.setattr(configs, "DESCRIPTIONS_PAIRS", 20)
    for name, size in (
        ("descriptions_teacher", TransformerConfig(width=16, num_heads=2, feed_forward=16)),
        ("descriptions_student", RecurrentConfig(width=16)),
    ):
        make = getattr(configs, name)

        def smaller(*args, make=make, size=size, **settings):
            made = make(*args, **settings)
            return replace(made, student=size, learner=SMALL, precision="float32")

        monkeypatch.setattr(configs, name, smaller)
    return SummarizeOptions(tmp_path / "runs")
