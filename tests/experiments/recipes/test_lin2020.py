"""Tests of the paper's configurations: its numbers, and runs on a few dozen pairs."""

import json
import math
from dataclasses import replace

import datasets
import pytest
import torch

from tests.support.variants import mostly_slow
from textgen_agents import AGENTS
from textgen_agents.training.config import LearnerConfig
from textgen_env.generation.sampling import Sampling
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_experiments.benchmarks.cost_model import (
    A100,
    Accelerator,
    MeasuredUpdate,
    measure_update,
    training_hours,
)
from textgen_experiments.cli import main
from textgen_experiments.command_line.parse import parse
from textgen_experiments.recipes.lin2020 import PAPER
from textgen_experiments.runs.factories import build_model, build_task, num_parameters

SENTENCES = [
    f"Der {a} sieht {b} {c} mal ." for a in ["Hund", "Mann"] for b in "ABC" for c in "1234567"
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folders(tmp_path):
    """Write a folder for each data set, laid out as on the hub, with a few dozen pairs."""
    texts = list(enumerate(SENTENCES))
    translation = [{"translation": {"de": t, "en": t.replace("Der", "The")}} for _, t in texts]
    news = [{"article": f"{t} " * 9, "highlights": t, "id": str(n)} for n, t in texts]
    rows = {"iwslt14": translation, "wmt16": translation, "cnn_dailymail": news}
    for name, records in rows.items():
        for split in ("train", "validation", "test"):
            folder = tmp_path / name / "de-en" / split
            folder.mkdir(parents=True)
            datasets.Dataset.from_list(records).to_parquet(folder / "0000.parquet")
    return {name: str(tmp_path / name) for name in rows}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("iwslt14", 8.6e6),
        ("iwslt14_transformer", 8.5e6),
        ("iwslt14_teacher", 20.1e6),
        ("wmt16", 34e6),
        ("cnn_dailymail", 14.4e6),
        ("cnn_dailymail_teacher", 59.8e6),
    ],
)
def test_models_are_of_the_papers_size(name, parameters):
    experiment = PAPER[name](AGENTS["mle"]())
    with torch.device("meta"):
        config = replace(experiment.student, vocab_size=experiment.task.vocab_size)
        size = num_parameters(build_model(config, 0))
    assert size == pytest.approx(parameters, rel=0.26 if "transformer" in name else 0.1)


PEAKS = {
    "iwslt14": 1.41e-3,
    "iwslt14_teacher": 1.0e-3,
    "wmt16": 7.9e-4,
    "cnn_dailymail": 2.24e-3,
    "cnn_dailymail_teacher": 1.34e-3,
}


@pytest.mark.parametrize(("name", "peak"), PEAKS.items())
def test_the_rate_is_noams(name, peak):
    learner = PAPER[name](AGENTS["mle"]()).learner
    factor, warmup = learner.learning_rate * learner.warmup**0.5, learner.warmup
    for step in (1, 2, warmup // 2, warmup, warmup + 1, 10 * warmup):
        expected = factor * min(step**-0.5, step * warmup**-1.5)
        assert learner.learning_rate_at(step - 1) == pytest.approx(expected)
    assert learner.learning_rate_at(warmup - 1) == pytest.approx(peak, rel=0.01)


def test_the_rate_may_still_fall_along_a_line():
    assert LearnerConfig(updates=10, warmup=0, decay=0.5).learning_rate_at(9) < 1e-3
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\] or None, got 2"):
        LearnerConfig(decay=2)


def test_updates_are_the_papers():
    def learner(name, agent="mle"):
        return PAPER[name](AGENTS[agent]()).learner

    assert (learner("iwslt14").updates, learner("iwslt14").clip) == (80_000, 5.0)
    assert learner("wmt16").updates == pytest.approx(132_000, rel=0.01)
    assert learner("wmt16_low_data").updates * 128 == pytest.approx(15 * 180_000, rel=0.01)
    assert (learner("cnn_dailymail").updates, learner("cnn_dailymail").batch_size) == (200_000, 32)
    teacher = learner("cnn_dailymail_teacher")
    assert (teacher.batch_size // teacher.accumulate, teacher.clip) == (32, math.inf)
    assert learner("iwslt14", "seqinter").learning_rate == pytest.approx(2.24e-4, rel=0.01)


@pytest.mark.parametrize(
    ("name", "agent", "base", "batches", "sampling"),
    [
        ("iwslt14", "imitkd", 200.0, 4, Sampling(top_k=5)),
        ("iwslt14", "imitkd_full", 200.0, 4, None),
        ("wmt16", "imitkd", 200.0, 1, None),
        ("wmt16", "imitkd_star", 2.0, 1, None),
        ("wmt16_low_data", "imitkd_star_full", 2.0, 1, None),
        ("cnn_dailymail", "imitkd_full", 10.0, 4, None),
        ("cnn_dailymail", "imitkd_star", 10.0, 4, None),
    ],
)
def test_prefixes_are_mixed_as_in_the_paper(name, agent, base, batches, sampling):
    made = PAPER[name](AGENTS[agent]()).agent
    assert (made.beta.base, made.batches_per_rollout, made.sampling) == (base, batches, sampling)


def test_only_summaries_are_smoothed():
    assert PAPER["cnn_dailymail"](AGENTS["seqkd"]()).agent.label_smoothing == 0.1
    assert PAPER["wmt16"](AGENTS["seqkd"]()).agent.label_smoothing == 0.0


def local_task(name, folders):
    """Return the task of `name` with data from a folder and a small vocabulary."""
    experiment = PAPER[name](AGENTS["imitkd"]())
    config = replace(experiment.task, path=folders[experiment.task.name], vocab_size=300)
    return replace(config, configuration=None, revision=None)


@pytest.mark.parametrize("name", ["iwslt14", "wmt16", "cnn_dailymail"])
def test_data_in_their_format_become_tasks(name, folders):
    task = build_task(local_task(name, folders), None)
    assert len(task.train) == len(task.test) == len(SENTENCES)
    source, reference, _ = task.train[0]
    if name == "iwslt14":
        assert (source, reference) == ("der hund sieht a 1 mal .", "the hund sieht a 1 mal .")
        assert task.max_target_length == 125
    elif name == "wmt16":
        assert (source, reference) == (SENTENCES[0].replace("Der", "The"), SENTENCES[0])
    else:
        assert (source, reference) == (" ".join([SENTENCES[0]] * 9), SENTENCES[0])
        assert (task.max_source_length, task.max_target_length) == (400, 128)


SMALL = [
    *("--learner.batch-size", "4", "--learner.accumulate", "1", "--learner.updates", "2"),
    *("--learner.evaluate-every", "2", "--student.width", "16", "--validation-pairs", "4"),
    *("--precision", "float32", "--task.vocab-size", "300", "--task.configuration", "None"),
    *("--task.revision", "None", "--task.limits.max-tokens", "60"),
]


@pytest.mark.parametrize("name", mostly_slow(PAPER, "iwslt14"))
def test_configurations_train_from_the_command_line(name, folders, tmp_path):
    data = folders[PAPER[name](AGENTS["mle"]()).task.name]
    few = ["--train-pairs", "20"] if "low" in name else []
    teacher = ["--agent", "imitkd", "--teacher", str(tmp_path / "first" / "model")]
    runs = {"first": ["--agent", "mle"], "second": teacher}
    if name.endswith("_teacher"):
        del runs["second"]
    for run, options in runs.items():
        main(
            [
                *("train", "--paper", name, "--task.path", data, *SMALL, *few, *options),
                *("--output", str(tmp_path / run)),
            ]
        )
    assert (tmp_path / run / "model" / "model.safetensors").exists()
    config = json.loads((tmp_path / run / "config.json").read_text())
    assert config["experiment"]["task"]["path"] == data


@pytest.mark.parametrize("name", PAPER)
def test_configurations_are_options(name):
    options = parse(["train", "--output", "x", "--paper", name, "--learner.seed", "3"])
    expected = PAPER[name](AGENTS["imitkd_full"]())
    learner = replace(expected.learner, seed=3)
    assert options.experiment == replace(expected, learner=learner)


def test_hours_by_hand():
    experiment = PAPER["iwslt14"](AGENTS["mle"]())  # 80,000 updates of 128
    measured = MeasuredUpdate(seconds=0.5, rows=16, operators=1000, rate=50.0)
    accelerator = Accelerator(rate=50_000.0, launch=1e-5)
    assert training_hours(experiment, measured, accelerator) == pytest.approx(
        80_000 * (0.004 + 0.01) / 3600
    )
    in_parts = replace(experiment, learner=replace(experiment.learner, accumulate=4))
    assert training_hours(in_parts, measured, accelerator) == pytest.approx(
        80_000 * (0.004 + 0.04) / 3600
    )


@pytest.mark.parametrize("agent", ["mle", "imitkd_full"])
def test_an_update_is_measured(agent):
    experiment = PAPER["iwslt14"](AGENTS[agent]())
    task = replace(experiment.task, vocab_size=300)
    experiment = replace(experiment, task=task, student=RecurrentConfig(width=16))
    teacher = None if agent == "mle" else TransformerConfig(width=16, feed_forward=32)
    few, many = (
        measure_update(experiment, teacher, source_tokens=6, target_tokens=tokens, rows=2)
        for tokens in (5, 25)
    )
    assert few.rows == 2
    assert few.seconds > 0
    assert few.rate > 0
    each_step = (many.operators - few.operators) / 20
    assert each_step > 20 if agent == "imitkd_full" else each_step < 15  # writing is stepwise
    assert training_hours(experiment, many, A100) > 0
